"""What an offline run shows on the terminal: progress while it serves, tables at the end."""

import time
from typing import Any

from rich.console import Console
from rich.table import Table

from mixattn.tools.progress import ProgressLines
from serving.request import Delta


class RequestLine:
    """The progress line of one run; `delta` and `compiled` are the callbacks of `compare.run`."""

    def __init__(self, lines: ProgressLines, name: str, requests: int) -> None:
        self._name, self._requests = name, requests
        self._line = lines.add(requests)
        self._finished = self._tokens = 0
        self._start_s = time.monotonic()
        self._show("starting")

    def compiled(self, name: str, seconds: float) -> None:
        self._start_s = time.monotonic()
        self._show(f"compiled {name} in {seconds:.1f} s")

    def delta(self, delta: Delta) -> None:
        self._tokens += len(delta.ids)
        self._finished += delta.output is not None
        rate = self._tokens / (time.monotonic() - self._start_s)
        self._show(f"{rate:,.0f} output tokens/s")

    def _show(self, note: str) -> None:
        self._line.update(
            self._finished, f"{self._name:<12} {self._finished}/{self._requests} requests  {note}"
        )


def show_summary(summary: dict[str, Any]) -> None:
    console = Console()
    console.print(policy_table(summary["policies"]))
    console.print(memory_table(summary["memory"]))


def policy_table(runs: dict[str, Any]) -> Table:
    """One row per policy and client: rates, times to first token, the largest gap beside its bound."""
    table = Table(title="The same clients under each policy")
    for name in ("policy", "out tok/s", "hit rate", "largest gap", "proven bound", "programs", "client"):
        table.add_column(name, justify="left" if name in ("policy", "client") else "right")
    for name in ("TTFT p50 s", "TTFT p99 s"):
        table.add_column(name, justify="right")
    for policy, run in runs.items():
        t = run["table"]
        head = [
            policy,
            f"{t['output_tok_per_s']:.0f}",
            f"{t['hit_rate']:.0%}",
            f"{t['gap']:,.0f}",
            "none" if t["bound"] is None else f"{t['bound']:,.0f}",
            str(t["programs_at_end"]),
        ]
        for client, wait in t["clients"].items():
            table.add_row(*head, client, f"{wait['ttft_p50_s']:.2f}", f"{wait['ttft_p99_s']:.2f}")
            head = [""] * len(head)
        table.add_section()
    return table


def memory_table(rows: list[dict[str, Any]]) -> Table:
    """KV bytes of one request: counted on live arrays, and by the formula."""
    table = Table(title="KV memory of one request")
    for name in ("tokens", "wiring", "live arrays, bytes", "formula, bytes"):
        table.add_column(name, justify="left" if name == "wiring" else "right")
    for row in sorted(rows, key=lambda row: row["tokens"]):
        table.add_row(
            f"{row['tokens']:,}", row["wiring"], f"{row['live_bytes']:,}", f"{row['formula_bytes']:,}"
        )
    return table
