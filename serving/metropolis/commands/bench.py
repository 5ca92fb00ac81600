"""Times the dependency graph: microseconds a commit by number of agents. Run it alone on its core."""

import json
from dataclasses import asdict
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from mixattn.tools import cli
from pallas_kernels import results
from serving.metropolis.experiments import controller_cost

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_list("agents", ["100", "1000", "10000", "100000"], "Sizes to time.")
    flags.DEFINE_integer("commits", 20_000, "Commits timed per repeat.")
    flags.DEFINE_integer("repeats", 3, "Repeats; the median and the minimum are reported.")
    flags.DEFINE_integer(
        "day", 0, "Instead replay a whole synthetic day of this many agents (1,000: minutes)."
    )
    flags.DEFINE_string("out", "", "Also write a CSV here.")
    flags.DEFINE_bool("json", False, "Print JSON.")
    cli.run(_main, argv)


def _main() -> None:
    sizes = tuple(int(size) for size in FLAGS.agents)
    if min(sizes) < 1 or FLAGS.commits < 1 or FLAGS.repeats < 1:
        raise ValueError("--agents, --commits and --repeats must all be at least 1")
    if FLAGS.day:
        rows = [controller_cost.day(FLAGS.day)]
    else:
        costs = controller_cost.run(sizes, commits=FLAGS.commits, repeats=FLAGS.repeats)
        rows = [asdict(cost) for cost in costs]
    if FLAGS.out:
        _write(Path(FLAGS.out), rows)
    if FLAGS.json:
        print(json.dumps(rows))
        return
    show(rows)


def show(rows: list[dict]) -> None:
    """Rows as a table; a single row as two columns."""
    if len(rows) == 1:
        rows = [{"figure": name, "value": value} for name, value in rows[0].items()]
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=110).print(table)


def _write(path: Path, rows: list[dict]) -> None:
    short = [{k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    recipe = {"commits": FLAGS.commits, "repeats": FLAGS.repeats, "device": f"{results.processor()}, 1 core"}
    figures = "median and minimum over repeats of microseconds a commit"
    results.write_csv(path, short, command="python -m serving.metropolis bench", figures=figures, **recipe)
