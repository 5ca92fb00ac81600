"""What a run says of its plan, and afterwards of what was measured."""

import dataclasses
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from serving.offload.machine_plan import GIB, MachinePlan, MachinePlanner, Mode


def describe(
    planner: MachinePlanner, plan: MachinePlan, way: str, mode: Mode | None, schedule: str | None
) -> dict[str, Any]:
    """A plan's figures, and what one more GiB would bring, if mode and schedule stay forced."""
    config = planner.config
    more = planner.with_more(GIB).best(mode, schedule)
    experts = sum(map(config.has_experts, range(config.n_layers))) * config.n_experts
    return {
        "mode": plan.mode,
        "schedule": plan.schedule,
        "rows": plan.rows,
        "micro_batches": plan.parts,
        "batch": plan.batch,
        "experts": experts,
        "experts_in_memory": plan.slots,
        "resident_experts": plan.resident,
        "bytes_planned": plan.bytes,
        "memory_bytes": planner.memory_bytes,
        "source": way,
        "rates": dataclasses.asdict(planner.rates),
        "predicted": {
            "read_s": plan.read_s,
            "compute_s": plan.compute_s,
            "pass_s": plan.pass_s,
            "read_bytes": plan.read_bytes,
            "tokens_per_s": plan.tokens_per_s,
        },
        "bottleneck": plan.bottleneck,
        "tokens_per_s_with_1_gib_more": more.tokens_per_s,
    }


def show_plan(report: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    table = Table(title=f"Memory, of {report['memory_bytes'] / GIB:.3f} GiB", title_justify="left")
    table.add_column("purpose")
    table.add_column("GiB", justify="right")
    for purpose, size in report["bytes_planned"].items():
        table.add_row(purpose, f"{size / GIB:.3f}")
    table.add_row("together", f"{sum(report['bytes_planned'].values()) / GIB:.3f}")
    console.print(table)
    console.print(
        f"mode {report['mode']}, schedule {report['schedule']}: {report['rows']} rows x"
        f" {report['micro_batches']} micro-batches (N = {report['batch']}), {report['experts_in_memory']} of"
        f" {report['experts']} experts in memory, {report['resident_experts']} of them always; experts from"
        f" {report['source']}"
    )
    predicted = report["predicted"]
    console.print(
        f"predicted decode pass: read {predicted['read_s']:.3f} s ({predicted['read_bytes'] / 2**20:.0f} MiB)"
        f", compute {predicted['compute_s']:.3f} s, together {predicted['pass_s']:.3f} s; bottleneck"
        f" {report['bottleneck']}; {predicted['tokens_per_s']:.1f} tokens/s, with 1 GiB more"
        f" {report['tokens_per_s_with_1_gib_more']:.1f}"
    )


def show_measured(report: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(
        f"answered {report['answered']}, kept {report['kept']}, refused {report['refused']};"
        f" load average {report['load_average']:.1f}"
    )
    if not report["passes"]:
        return
    table = Table(title="Seconds of a pass (measured: all passes, prompts too)", title_justify="left")
    for name in ("", "predicted", "measured"):
        table.add_column(name, justify="right" if name else "left")
    n, predicted = report["passes"], report["predicted"]
    for label, key, value in (
        ("read", "read_s", report["read_s"] / n),
        ("compute", "compute_s", report["compute_s"] / n),
        ("pass", "pass_s", report["wall_s"] / n),
    ):
        table.add_row(label, f"{predicted[key]:.3f}", f"{value:.3f}")
    table.add_row("MiB read", f"{predicted['read_bytes'] / 2**20:.1f}", f"{report['bytes'] / n / 2**20:.1f}")
    console.print(table)
    if "cache" in report:
        console.print(f"cache: {report['cache']}, passes {report['cached_passes']}")
