"""Writes a synthetic trace as JSON lines, or imports the instrumented public fork's export."""

import json
from pathlib import Path

from absl import flags

from mixattn.tools import cli
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.worlds import trace
from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("out", None, "The file to write.", required=True)
    flags.DEFINE_integer("agents", 25, "Agents; 25 a town.")
    flags.DEFINE_integer("hour", 12, "0 to 23, or -1 for the whole day.")
    flags.DEFINE_integer("seed", 0, "Equal seeds give equal traces.")
    flags.DEFINE_string("llm_data", "", "Import instead: the fork's llm_data.json.")
    flags.DEFINE_string("location_data", "", "Import instead: the fork's location_data.json.")
    flags.DEFINE_integer("perceive", 4, "Perception radius, in tiles.")
    cli.run(_main, argv)


def _main() -> None:
    if bool(FLAGS.llm_data) != bool(FLAGS.location_data):
        raise ValueError("--llm_data and --location_data belong together; only one was given")
    if FLAGS.llm_data:
        files = (json.loads(Path(name).read_text()) for name in (FLAGS.llm_data, FLAGS.location_data))
        found = trace.import_events(*files, reach=Reach(FLAGS.perceive, 1))
    else:
        config = SyntheticTraceConfig(agents=FLAGS.agents, hour=FLAGS.hour, seed=FLAGS.seed, perceive=FLAGS.perceive)
        found = generate_trace(config)
    trace.save_trace(found, FLAGS.out)
    prompt_tok, output_tok = found.tokens()
    print(
        f"{FLAGS.out}: {len(found.names)} agents, {found.steps} steps, {found.call_count} calls,"
        f" {prompt_tok} prompt and {output_tok} output tokens"
    )
