"""Draws which agent ran which step when, one panel per mode, for a synthetic hour.

python -m serving.metropolis gantt --out=gantt.png
python -m serving.metropolis gantt --out=dawn.png --hour=6 --agents=10 --until_s=600
"""

from pathlib import Path

from absl import flags

from serving.metropolis.commands import command_line
from serving.metropolis.experiments import plots
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("out", "gantt.png", "The PNG to write.")
    flags.DEFINE_integer("agents", 25, "Number of agents; 25 per town.")
    flags.DEFINE_integer("hour", 12, "Hour of the trace, 0 to 23, or -1 for the whole day.")
    flags.DEFINE_integer("seed", 0, "Seed of the trace.")
    flags.DEFINE_integer("replicas", 8, "Number of replicas of the simulated server.")
    flags.DEFINE_float("until_s", 1500.0, "End of the time axis, in seconds of server time.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    trace = generate_trace(SyntheticTraceConfig(agents=FLAGS.agents, hour=FLAGS.hour, seed=FLAGS.seed))
    out = plots.gantt(
        trace,
        ServerConfig(replicas=FLAGS.replicas),
        Path(FLAGS.out),
        modes=("parallel_sync", "metropolis", "oracle"),
        until_s=FLAGS.until_s,
    )
    print(f"{out}: which agent ran which step when")
