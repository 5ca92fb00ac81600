"""Draws who ran which step when, one panel a mode, for a synthetic hour."""

from pathlib import Path

from absl import flags

from mixattn.tools import cli
from serving.metropolis.experiments import plots
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("out", "gantt.png", "The picture to write.")
    flags.DEFINE_integer("agents", 25, "Agents of the trace.")
    flags.DEFINE_integer("hour", 12, "Hour of the trace.")
    flags.DEFINE_integer("seed", 0, "Of the trace.")
    flags.DEFINE_integer("replicas", 8, "Replicas of the simulated server.")
    flags.DEFINE_float("until_s", 1500.0, "Server time to show.")
    cli.run(_main, argv)


def _main() -> None:
    trace = generate_trace(SyntheticTraceConfig(agents=FLAGS.agents, hour=FLAGS.hour, seed=FLAGS.seed))
    out = plots.gantt(
        trace,
        ServerConfig(replicas=FLAGS.replicas),
        Path(FLAGS.out),
        modes=("parallel_sync", "metropolis", "oracle"),
        until_s=FLAGS.until_s,
    )
    print(f"{out}: who ran which step when")
