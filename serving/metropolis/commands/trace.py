"""Writes a trace as JSON lines: a synthetic one, or an import from the instrumented public fork.

    python -m serving.metropolis trace --out=day.jsonl --agents=50 --hour=-1
    python -m serving.metropolis trace --out=day.jsonl --llm_data=llm.json --location_data=location.json

serving/metropolis/worlds/trace.py documents the format.
"""

import json
from pathlib import Path

from absl import flags

from serving.metropolis.commands import command_line
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace
from serving.metropolis.worlds.trace import import_events, save_trace

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("out", None, "The file to write.", required=True)
    flags.DEFINE_integer("agents", 25, "Number of agents; 25 per town.")
    flags.DEFINE_integer("hour", 12, "Hour of the trace, 0 to 23, or -1 for the whole day.")
    flags.DEFINE_integer("seed", 0, "Seed of the trace; equal seeds give equal traces.")
    flags.DEFINE_string("llm_data", "", "Import this llm_data.json of the fork.")
    flags.DEFINE_string("location_data", "", "Import this location_data.json of the fork.")
    flags.DEFINE_integer("perceive", 4, "Perception radius, in tiles.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    if bool(FLAGS.llm_data) != bool(FLAGS.location_data):
        raise ValueError("--llm_data and --location_data belong together; only one was given")
    if FLAGS.llm_data:
        files = (json.loads(Path(name).read_text()) for name in (FLAGS.llm_data, FLAGS.location_data))
        trace = import_events(*files, reach=Reach(FLAGS.perceive, 1))
    else:
        config = SyntheticTraceConfig(
            agents=FLAGS.agents, hour=FLAGS.hour, seed=FLAGS.seed, perceive=FLAGS.perceive
        )
        trace = generate_trace(config)
    save_trace(trace, FLAGS.out)
    prompt_tok, output_tok = trace.tokens()
    print(
        f"{FLAGS.out}: {len(trace.names)} agents, {trace.steps} steps, {trace.call_count} calls,"
        f" {prompt_tok} prompt and {output_tok} output tokens"
    )
