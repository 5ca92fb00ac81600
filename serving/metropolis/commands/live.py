"""Runs the town on our own engine in every mode: compares the stories and measures wall-clock time.

    python -m serving.metropolis live --config=configs/metropolis.py:E7
    python -m serving.metropolis live --config=configs/metropolis.py:E7 --config.residents=4 --out=live.json

The model has random weights. The command fails if the runs do not end with the same story.
"""

import json
import statistics
from dataclasses import asdict
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from mixattn.tools import cli, files
from pallas_kernels import results
from serving.metropolis.commands import command_line
from serving.metropolis.experiments import live
from serving.metropolis.experiments.live import LiveTownConfig

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    cli.define_config()
    flags.DEFINE_string("out", "", "Also write the figures as JSON to this path.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    config = command_line.config(LiveTownConfig, "configs/metropolis.py:E7")
    found = live.run(config)
    about = {"config": asdict(config), **results.surroundings()}
    if FLAGS.out:
        files.write_json(Path(FLAGS.out), {"about": about, **found})
    if FLAGS.json:
        print(json.dumps(found))
        return
    table = Table(title=f"{found['calls']} calls, wall-clock seconds on {about['device']}")
    for column in ("mode", "median s", "minimum s", "calls in flight"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for mode, seconds in found["seconds"].items():
        median, minimum = statistics.median(seconds), min(seconds)
        table.add_row(mode, f"{median:.2f}", f"{minimum:.2f}", f"{found['parallelism'][mode]:.2f}")
    Console().print(table)
    if not found["same"]:
        raise ValueError("the runs did not end with the same story; equality with lock-step is broken")
    print("every run ended with the same story")
