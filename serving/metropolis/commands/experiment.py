"""Runs the missing rows of an experiment, prints its summary and draws its plot.

    python -m serving.metropolis experiment --config=configs/metropolis.py:E2-quick
    python -m serving.metropolis experiment --config=configs/metropolis.py:E1 --workers=4
    python -m serving.metropolis experiment --config=configs/metropolis.py:E5 --config.seeds=2 --json

Experiments are E1 to E6 and E8; the docstring of configs/metropolis.py says what each takes and finds. Ctrl-C
loses no finished row: run the command again.
"""

import json
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from mixattn.tools import cli
from mixattn.tools.progress import ProgressLine, ProgressLines
from pallas_kernels import results
from serving.metropolis.commands import command_line
from serving.metropolis.experiments import plots, suite
from serving.metropolis.experiments.suite import MetropolisExperiment
from serving.metropolis.experiments.summary import summarise

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    cli.define_config()
    flags.DEFINE_integer("workers", 2, "Number of processes that run rows.")
    flags.DEFINE_bool("json", False, "Print the summary as JSON instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    experiment = command_line.config(MetropolisExperiment, "configs/metropolis.py:E1")
    with ProgressLines(quiet=FLAGS.json) as lines:
        line: ProgressLine | None = None

        def show_rows(done: int, total: int) -> None:
            nonlocal line
            line = line or lines.add(total)
            line.update(done, f"{experiment.name}: {done} of {total} rows")

        path = suite.run(experiment, workers=FLAGS.workers, on_progress=show_rows)
    summary = summarise(results.read_csv(path), published=experiment.network is None)
    plot = plots.draw(experiment.name, path)
    if FLAGS.json:
        print(json.dumps(summary))
        return
    show(summary)
    print(f"rows in {path}, plot in {plot}; synthetic traces, virtual time")


def show(summary: list[dict[str, Any]]) -> None:
    """Prints the summary as a table of means over seeds, without the settings that never vary."""
    table = Table(title="mean (sd) over seeds; ratios are per seed")
    names = ["agents", "hour", "server", "replicas", "slots", "priority", "variant"]
    names = [n for n in names if len({row[n] for row in summary}) > 1] + ["mode"]
    every = ("elapsed_s", "parallelism", "vs_sync", "vs_single", "of_oracle", "of_critical")
    figures = [f for f in every if any(f in row for row in summary)]
    for name in (*names, *figures, "paper"):
        table.add_column(name, justify="right" if name in figures else "left", no_wrap=True)
    for row in sorted(summary, key=lambda r: tuple(_number(r[n]) for n in names)):
        cells = [f"{row[f]:.4g} ({row[f + '_sd']:.2g})" if f in row else "" for f in figures]
        paper = [f"{row['paper_vs_sync']}x"] if "paper_vs_sync" in row else []
        paper += [f"{100 * row['paper_of_oracle']:.0f} %"] if row.get("paper_of_oracle") else []
        table.add_row(*(str(row[n]) for n in names), *cells, ", ".join(paper))
    Console(width=190).print(table)


def _number(text: str) -> tuple[float, str]:
    """A sort key: numbers by value, words by alphabet."""
    return (float(text), "") if text.lstrip("-").isdigit() else (0.0, text)
