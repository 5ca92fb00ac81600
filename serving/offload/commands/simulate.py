"""Compares schedules of one plan in virtual time, and draws them.

python -m serving.offload simulate                                       the L4 of the paper, its plan
python -m serving.offload simulate --hardware=t4 --prompt=418            prompts padded to their maximum
python -m serving.offload simulate --micro_batch=64 --micro_batches=6    a policy of your own
python -m serving.offload simulate --gantt=gantt.svg --trace=trace.json  a picture; a Chrome trace

All figures are simulated: durations come from peak rates, not from a run. The paper's settings with its
measured figures
beside: python -m serving.simulate --config=configs/moe_lightning.py
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from mixattn.tools import files
from pallas_kernels import results
from serving.offload import durations
from serving.offload.commands import command_line
from serving.offload.experiment import OffloadExperiment, planner_of, schedules, simulate_settings
from serving.offload.plan import OffloadPlanner, OffloadPolicy
from serving.offload.schedule import SCHEDULES, emit
from serving.offload.search import search
from serving.offload.simulate import LaneSpan, layer_bound_s, simulate

FLAGS = flags.FLAGS
DRAWN_LAYERS = 4


def start(argv: list[str]) -> None:
    command_line.define_planner(__name__)
    flags.DEFINE_integer("micro_batch", None, "Rows of a micro-batch, instead of the plan's.")
    flags.DEFINE_integer("micro_batches", None, "Micro-batches of a pass, instead of the plan's.")
    flags.DEFINE_integer("layers", None, "Layers, instead of the model's.")
    flags.DEFINE_string("gantt", None, f"Draw {DRAWN_LAYERS} layers of s1 to s4 into this PNG or SVG.")
    flags.DEFINE_string("trace", None, "Write the whole passes as a Chrome trace into this JSON file.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    planner = command_line.planner()
    policy = _policy(planner)
    if FLAGS.gantt:
        draw(planner, policy, Path(FLAGS.gantt))
    layers = planner.shape.mixture_layers if FLAGS.layers is None else FLAGS.layers
    rows, passes = compare(planner, policy, layers)
    if FLAGS.trace:
        from serving.offload.pictures import chrome_trace  # imports matplotlib

        files.write_json(Path(FLAGS.trace), chrome_trace(passes))
        print(f"wrote {FLAGS.trace}", file=sys.stderr)
    if FLAGS.json:
        print(json.dumps({"batch": policy.batch, "resident": policy.resident, "schedules": rows}))
        return
    table = Table(title=f"{policy.micro_batch} x {policy.micro_batches} rows; simulated, from peak rates")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "schedule" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(
        "zero, s4 and flexgen are shown as if the same batch fitted them; zero needs all K/V on the device"
    )


def _policy(planner: OffloadPlanner) -> OffloadPolicy:
    if (FLAGS.micro_batch is None) != (FLAGS.micro_batches is None):
        raise ValueError(
            f"--micro_batch is {FLAGS.micro_batch} and --micro_batches {FLAGS.micro_batches};"
            " give both or none"
        )
    if FLAGS.micro_batch is None:
        return search(planner).policy
    if min(FLAGS.micro_batch, FLAGS.micro_batches) < 1:
        raise ValueError(
            f"{FLAGS.micro_batches} micro-batches of {FLAGS.micro_batch}; both must be at least 1"
        )
    return planner.fit(FLAGS.micro_batch, FLAGS.micro_batches)


def compare(
    planner: OffloadPlanner, policy: OffloadPolicy, layers: int
) -> tuple[list[dict[str, Any]], dict[str, tuple[LaneSpan, ...]]]:
    """A row per schedule: makespan, layer against its bound, how busy device and link are; and the passes."""
    seconds = durations.task_seconds(planner, policy)
    rows, passes = [], dict[str, tuple[LaneSpan, ...]]()
    for name in SCHEDULES:
        run = simulate(emit(name, layers=layers, micro_batches=policy.micro_batches, seconds=seconds))
        passes[name] = run.spans
        busy, bound = run.busy_s(), layer_bound_s(name, policy.micro_batches, seconds)
        rows.append(
            {
                "schedule": name,
                "pass_s": run.makespan_s,
                "tokens_per_s": policy.batch / run.makespan_s,
                "layer_s": run.steady_s(),
                "layer_over_bound": run.steady_s() / bound,
                "device_busy": busy["device"] / run.makespan_s,
                "link_busy": busy.get("to_device", 0.0) / run.makespan_s,
            }
        )
    return rows, passes


def draw(planner: OffloadPlanner, policy: OffloadPolicy, out: Path) -> None:
    """Draws the first layers of s1 to s4.

    Raises:
      ValueError: a file that is neither PNG nor SVG.
    """
    if out.suffix not in (".png", ".svg"):
        raise ValueError(f"--gantt={out} must end in .png or .svg")
    from serving.offload import pictures  # imports matplotlib, which a table does not need

    passes = {
        name: simulate(tasks).spans for name, tasks in schedules(planner, policy, layers=DRAWN_LAYERS).items()
    }
    where = f"{planner.hardware.name}, {policy.micro_batch} x {policy.micro_batches} rows"
    pictures.draw_gantt(passes, out, title=f"Simulated from peak rates: {DRAWN_LAYERS} layers on {where}")
    print(f"wrote {out}", file=sys.stderr)


def run_experiment(experiment: OffloadExperiment, *, as_json: bool) -> None:
    """Simulates the paper's settings beside its figures; `serving.simulate --config` calls this."""
    rows = simulate_settings(experiment)
    if experiment.gantt:
        planner = planner_of(experiment.settings[0], experiment.generate_tok[0], padded=True)
        draw(planner, search(planner).policy, Path(experiment.gantt))
    if experiment.out:
        note = "durations modelled from peak rates, decode only; paper_* columns are the paper's measurements"
        results.write_csv(
            experiment.out,
            rows,
            command="serving.simulate",
            config=f"settings {experiment.settings}, generate {experiment.generate_tok}",
            note=note,
            device=results.VIRTUAL,
        )
    if as_json:
        print(json.dumps({"simulated": True, "rows": rows}))
        return
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(
        _table(
            "Simulated decoding, tokens/s (bounds from peak rates; s1-s4, zero: padded to 418)", rows, RATES
        )
    )
    console.print(
        _table("Ratios, simulated | measured by the paper (own policies, prefill included)", rows, RATIOS)
    )


RATES = {
    "setting": "setting",
    "generate_tok": "generate",
    "batch_padded": "N padded",
    "s1_tok_per_s": "s1 (CGOPipe)",
    "s2_tok_per_s": "s2",
    "s3_tok_per_s": "s3 (FlexGen(c))",
    "s4_tok_per_s": "s4 (FlexGen)",
    "zero_tok_per_s": "zero (DeepSpeed)",
    "batch_unpadded": "N unpadded",
    "s1_unpadded_tok_per_s": "s1 unpadded",
    "roofline_unpadded_tok_per_s": "roofline",
}
RATIOS = {
    "setting": "setting",
    "generate_tok": "generate",
    "s1_over_s4_padded": "s1/s4, both padded",
    "paper_over_s4_padded": "paper",
    "s1_over_s3_padded": "s1/s3, both padded",
    "paper_over_s3_padded": "paper",
    "s1_over_zero_padded": "s1/zero, both padded",
    "paper_over_zero_padded": "paper",
    "s1_unpadded_over_s4_padded": "s1 unpadded/s4 padded",
    "paper_unpadded_over_s4_padded": "paper",
    "simulated_over_paper_unpadded": "simulated/paper, s1 unpadded",
}


def _table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns.values():
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(_text(row[name]) for name in columns))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
