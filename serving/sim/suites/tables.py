"""Tables of an experiment on the terminal: one of policies, with intervals over seeds, and one of clients."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from serving.fair.statistics import Interval
from serving.sim.seeds import Rows, intervals

COLUMNS = {
    "finished": "finished",
    "tok_per_s": "tok/s",
    "avg_diff": "service\ndiff. avg",
    "accumulated_gap": "accum.\ngap",
    "backlogged_gap": "gap while\nboth wait",
    "bound": "proven\nbound",
    "lag": "fluid\nlag",
    "pause_s": "longest\npause s",
    "jain": "Jain",
    "attainment": "in\ntarget",
    "goodput": "in target\n/s",
    "hit_rate": "hit\nrate",
    "ttft_mean_s": "TTFT\nmean s",
    "worst_ttft_p99_s": "worst\np99 s",
    "preempted": "pre-\nempted",
    "decision_us": "decision\nus",
}
MAX_CLIENTS = 40  # above it, those at both ends are shown
ENDS = 10
KEY = (
    'Gap, lag and differences in weighted tokens per unit of weight; "-": nothing was measured.\n'
    "Gap: the most that one of two waiting clients got ahead of the other. Lag: the most that a waiting "
    "client fell behind its share of a fluid server.\n"
    "Pause: the longest time between two admissions of a waiting client. Jain: of service over fluid share, "
    "of clients that waited."
)


def show(console: Console, title: str, by_run: Rows, clients: Sequence[dict[str, Any]]) -> None:
    """Prints both tables."""
    table = Table(title=title)
    table.add_column("policy")
    for column in COLUMNS.values():
        table.add_column(column, justify="right")
    for name, rows in by_run.items():
        found = intervals(rows)
        table.add_row(name, *(cell(found[column]) for column in COLUMNS))
    console.print(table)
    console.print(KEY, highlight=False)
    if clients:
        console.print(_client_table(clients))


def _client_table(rows: Sequence[dict[str, Any]]) -> Table:
    """All clients, or of each run those with the most and the least service."""
    names = list(dict.fromkeys(row["run"] for row in rows))
    shown: list[dict[str, Any] | None] = []
    cut = False
    for name in names:
        own = [row for row in rows if row["run"] == name]
        if len(own) > MAX_CLIENTS:
            own.sort(key=lambda row: -row["service"])
            shown += [*own[:ENDS], None, *own[-ENDS:]]
            cut = True
        else:
            shown += own
    ends = f", the {ENDS} with the most and the {ENDS} with the least" if cut else ""
    table = Table(title=f"Clients of seed 0: service in weighted tokens{ends}")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column in ("run", "client") else "right")
    for row in shown:
        table.add_row(*(["..."] * len(rows[0]) if row is None else (_text(v) for v in row.values())))
    return table


def cell(found: Interval) -> str:
    """The mean, and half the width of its interval where there is one."""
    if math.isnan(found.mean):
        return "-"
    if math.isnan(found.high) or found.high - found.mean <= 1e-9 * abs(found.mean):
        return _text(found.mean)
    return f"{_text(found.mean)}\n±{_text(found.high - found.mean)}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
