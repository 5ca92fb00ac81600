"""Times the dependency graph: microseconds per commit by number of agents. Run it alone on its core.

python -m serving.metropolis bench
python -m serving.metropolis bench --agents=100,1000 --out=bench.csv
python -m serving.metropolis bench --day=1000          a whole synthetic day instead: minutes
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from pallas_kernels import results
from serving.metropolis.commands import command_line
from serving.metropolis.experiments import controller_cost

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_list("agents", ["100", "1000", "10000", "100000"], "Numbers of agents to time.")
    flags.DEFINE_integer("commits", 20_000, "Commits timed per repeat.")
    flags.DEFINE_integer("repeats", 3, "Repeats; the table shows their median and minimum.")
    flags.DEFINE_integer("day", 0, "Simulate a synthetic day of this many agents instead of the table.")
    flags.DEFINE_string("out", "", "Also write a CSV to this path.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    sizes = _sizes()
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


def _sizes() -> tuple[int, ...]:
    if not all(size.isdecimal() for size in FLAGS.agents):
        raise ValueError(f"--agents={','.join(FLAGS.agents)} is not a list of whole numbers")
    sizes = tuple(map(int, FLAGS.agents))
    if min((FLAGS.commits, FLAGS.repeats, *sizes)) < 1:
        raise ValueError("--agents, --commits and --repeats must all be at least 1")
    return sizes


def show(rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table, and a single row as two columns."""
    if len(rows) == 1:
        rows = [{"figure": name, "value": value} for name, value in rows[0].items()]
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=110).print(table)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    rounded = [{k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    recipe = {"commits": FLAGS.commits, "repeats": FLAGS.repeats, "device": f"{results.processor()}, 1 core"}
    figures = "median and minimum over repeats of microseconds per commit"
    results.write_csv(path, rounded, command="python -m serving.metropolis bench", figures=figures, **recipe)
