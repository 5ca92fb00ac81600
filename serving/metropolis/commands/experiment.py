"""Runs an experiment's missing rows, prints its summary and draws its picture."""

from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mixattn.tools import cli
from pallas_kernels import results
from serving.metropolis.experiments import plots, suite

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    cli.define_config()
    flags.DEFINE_integer("workers", 2, "Processes to run rows in.")
    flags.DEFINE_bool("json", False, "Print the summary as JSON.")
    cli.run(_main, argv)


def _main() -> None:
    experiment = cli.config()
    with Progress(disable=FLAGS.json) as progress:
        task = progress.add_task(experiment.name, total=None)
        path = suite.run(
            experiment,
            workers=FLAGS.workers,
            tell=lambda done, total: progress.update(task, completed=done, total=total),
        )
    rows = results.read_csv(path)
    summary = suite.summarise(rows, published=experiment.network is None)
    picture = plots.draw(experiment.name, path)
    if FLAGS.json:
        import json

        print(json.dumps(summary))
        return
    show(summary)
    print(f"rows in {path}, picture in {picture}; synthetic traces, virtual time")


def show(summary: list[dict]) -> None:
    """The summary as a table: means over seeds, spread in brackets; settings that never vary are left out."""
    table = Table(title="mean (sd) over seeds; ratios are per seed")
    names = ["agents", "hour", "server", "replicas", "slots", "priority", "variant"]
    names = [n for n in names if len({row[n] for row in summary}) > 1] + ["mode"]
    every = ("elapsed_s", "parallelism", "vs_sync", "vs_single", "of_oracle", "of_critical")
    figures = [f for f in every if any(f in row for row in summary)]
    for name in (*names, *figures, "paper"):
        table.add_column(name, justify="right" if name in figures else "left", no_wrap=True)
    for row in sorted(summary, key=lambda r: tuple(_number(r[n]) for n in names)):
        cells = [f"{row[f]:.4g} ({row[f + '_sd']:.2g})" if f in row else "" for f in figures]
        told = [f"{row['paper_vs_sync']}x"] if "paper_vs_sync" in row else []
        told += [f"{100 * row['paper_of_oracle']:.0f} %"] if row.get("paper_of_oracle") else []
        table.add_row(*(str(row[n]) for n in names), *cells, ", ".join(told))
    Console(width=190).print(table)


def _number(text: str) -> tuple[float, str]:
    """Sorts numbers as numbers and words as words."""
    return (float(text), "") if text.lstrip("-").isdigit() else (0.0, text)
