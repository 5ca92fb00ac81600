"""Plans how to run a mixture model that exceeds the device, from sizes and rates alone; no weights are
needed.

python -m serving.offload plan --model=mixtral-8x7b --hardware=l4 --prompt=77 --generate=32
python -m serving.offload plan --hardware=t4 --prompt=418 --json              prompts padded to their maximum
python -m serving.offload plan --device_memory_gb=12 --efficiency_link=0.77   a smaller card, a measured link
python -m serving.offload plan --roofline=roofline.svg                        the plan's point on the roofline

Predictions are bounds from peak rates: the paper's own runs reached a tenth to a half of them.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from serving.offload import durations, roofline
from serving.offload.commands import command_line
from serving.offload.hardware import GIB
from serving.offload.plan import DEVICE_SHARE, HOST_SHARE, OffloadPlanner
from serving.offload.search import OffloadPlan, search

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    command_line.define_planner(__name__)
    flags.DEFINE_bool("device_attention", False, "Attention on the device instead of the host.")
    flags.DEFINE_integer("max_batch", None, "Rows of a pass at most, e.g. the number of requests.")
    flags.DEFINE_string("roofline", None, "Draw the roofline with the plan's point into this PNG or SVG.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    planner = command_line.planner()
    report = describe(planner, _search(planner))
    if FLAGS.roofline:
        from serving.offload import pictures  # imports matplotlib, which a plan does not need

        pictures.draw_roofline(planner, report["micro_batch"], report["batch"], Path(FLAGS.roofline))
        print(f"wrote {FLAGS.roofline}", file=sys.stderr)
    if FLAGS.json:
        print(json.dumps(report))
    else:
        _show(planner, report)


def _search(planner: OffloadPlanner) -> OffloadPlan:
    if FLAGS.max_batch is not None and FLAGS.max_batch < 1:
        raise ValueError(f"--max_batch is {FLAGS.max_batch}; a pass has at least 1 row")
    return search(planner, device_attention=FLAGS.device_attention, max_batch=FLAGS.max_batch)


def describe(planner: OffloadPlanner, plan: OffloadPlan) -> dict[str, Any]:
    """A plan's figures: policy, memory by purpose, predicted seconds, and what one more GiB would bring."""
    policy, shape = plan.policy, planner.shape
    layer = planner.seconds(policy)
    experts = shape.mixture_layers * shape.config.n_experts
    more = dataclasses.replace(
        planner,
        hardware=dataclasses.replace(planner.hardware, device_bytes=planner.hardware.device_bytes + GIB),
    )
    return {
        "micro_batch": policy.micro_batch,
        "micro_batches": policy.micro_batches,
        "batch": policy.batch,
        "resident": policy.resident,
        "resident_experts": math.floor(policy.resident * experts + 1e-9),
        "experts": experts,
        "device_attention": policy.device_attention,
        "kv_resident": policy.kv_resident,
        "schedule": durations.fastest_schedule(planner, policy),
        "layer_s": dataclasses.asdict(layer),
        "bottleneck": layer.bottleneck,
        "step_s": planner.step_seconds(policy),
        "tokens_per_s": plan.tokens_per_s,
        "tokens_per_s_with_1_gib_more": _search(more).tokens_per_s,
        "device_bytes": planner.device_use(policy),
        "host_bytes": planner.host_use(policy),
        "policies_tried": plan.tried,
    }


def _show(planner: OffloadPlanner, report: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    workload = planner.workload
    console.print(
        f"{FLAGS.model} on {planner.hardware.name}: prompts of {workload.prompt_tok:g},"
        f" {workload.generate_tok} generated"
    )
    side = "device" if report["device_attention"] else "host"
    console.print(
        f"{report['micro_batch']} x {report['micro_batches']} rows (N = {report['batch']}),"
        f" r_w {report['resident']:.4f}"
        f" = {report['resident_experts']} of {report['experts']} experts resident, attention on the {side},"
        f" schedule {report['schedule']}"
    )
    _show_memory(console, planner, report)
    table = Table(title="One layer of a pass, predicted from peak rates", title_justify="left")
    for name in (*report["layer_s"], "bottleneck"):
        table.add_column(f"{name} s" if name in report["layer_s"] else name, justify="right")
    table.add_row(*(f"{seconds:.4f}" for seconds in report["layer_s"].values()), report["bottleneck"])
    console.print(table)
    gain = report["tokens_per_s_with_1_gib_more"] / report["tokens_per_s"] - 1
    console.print(
        f"{report['tokens_per_s']:,.0f} tokens/s while decoding (bound; the paper's own runs were 2 to 10"
        " times slower);"
        f" 1 GiB more device memory: {gain:+.1%}"
    )
    _show_turning_points(console, planner, report)


def _show_memory(console: Console, planner: OffloadPlanner, report: dict[str, Any]) -> None:
    table = Table(title="Memory in GiB", title_justify="left")
    for name in ("memory", "purpose", "GiB"):
        table.add_column(name, justify="right" if name == "GiB" else "left")
    sizes = {
        "device": DEVICE_SHARE * planner.hardware.device_bytes,
        "host": HOST_SHARE * planner.hardware.host_bytes,
    }
    for memory, limit in sizes.items():
        use = report[f"{memory}_bytes"]
        for purpose, size in use.items():
            table.add_row(memory, purpose, f"{size / GIB:.2f}")
        table.add_row(memory, f"together, of {limit / GIB:.2f} usable", f"{sum(use.values()) / GIB:.2f}")
        table.add_section()
    console.print(table)


def _show_turning_points(console: Console, planner: OffloadPlanner, report: dict[str, Any]) -> None:
    """Where the plan stands on the roofline of the experts."""
    peak, shape = roofline.rates(planner.hardware), planner.shape
    near = roofline.ffn_intensity(shape, report["micro_batch"])
    points = {"P1": roofline.turning_point_1(peak), "P2": roofline.turning_point_2(peak, near)}
    reached = {name: roofline.tokens_to_reach(shape, value) for name, value in points.items()}
    text = ", ".join(
        f"{name} {value:.1f} FLOP/B (N = {reached[name] or 'never'})" for name, value in points.items()
    )
    here = roofline.ffn_intensity(shape, report["batch"])
    console.print(f"experts' roofline: {text}; this plan {here:.1f} FLOP/B at N = {report['batch']}")
