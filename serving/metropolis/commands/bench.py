"""Times the dependency graph: microseconds a commit by number of agents. Run it alone on its core."""

import csv
import io
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from mixattn import cli
from serving.metropolis import bench
from serving.metropolis.experiments import commit

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
        rows = [bench.day(FLAGS.day)]
    else:
        costs = bench.run(sizes, commits=FLAGS.commits, repeats=FLAGS.repeats)
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
    about = {
        "command": "python -m serving.metropolis bench",
        "commits": FLAGS.commits,
        "repeats": FLAGS.repeats,
    }
    about |= {
        "device": f"1 core of {os.cpu_count()}, {platform.machine()}",
        "python": platform.python_version(),
    }
    about |= {"commit": commit(), "figures": "median and minimum over repeats of microseconds a commit"}
    text = io.StringIO()
    text.writelines(f"# {name}: {value}\n" for name, value in about.items())
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    part = path.with_name(path.name + ".part")
    part.write_text(text.getvalue())
    os.replace(part, path)
