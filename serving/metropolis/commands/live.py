"""Runs the town on our own engine in every mode: same story, and how long each takes here and now."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from mixattn.tools import cli, files
from pallas_kernels import results
from serving.metropolis.experiments import live

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    cli.define_config()
    flags.DEFINE_string("out", "", "Also write the figures here, as JSON.")
    flags.DEFINE_bool("json", False, "Print JSON.")
    cli.run(_main, argv)


def _main() -> None:
    config = cli.config()
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
        middle, least = statistics.median(seconds), min(seconds)
        table.add_row(mode, f"{middle:.2f}", f"{least:.2f}", f"{found['parallelism'][mode]:.2f}")
    Console().print(table)
    if not found["same"]:
        raise ValueError("the runs did not end with the same story; equality with lock-step is broken")
    print("every run ended with the same story")
