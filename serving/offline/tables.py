"""The tables of an offline run, for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(summary: dict[str, Any]) -> None:
    console = Console()
    console.print(policies(summary["policies"]))
    console.print(memory(summary["memory"]))


def policies(runs: dict[str, Any]) -> Table:
    """One line a policy and client: rates, waiting times, the largest gap beside its bound."""
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


def memory(rows: list[dict[str, Any]]) -> Table:
    """KV bytes of one request: counted on live arrays, and by the formula."""
    table = Table(title="KV memory of one request")
    for name in ("tokens", "wiring", "live arrays, bytes", "formula, bytes"):
        table.add_column(name, justify="left" if name == "wiring" else "right")
    for row in sorted(rows, key=lambda row: row["tokens"]):
        table.add_row(
            f"{row['tokens']:,}", row["wiring"], f"{row['live_bytes']:,}", f"{row['formula_bytes']:,}"
        )
    return table
