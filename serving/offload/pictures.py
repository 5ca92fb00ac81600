"""Draws schedules as Gantt charts and plans on the roofline, and writes passes as Chrome traces.

The only module here that imports matplotlib (the extra `report`).
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mixattn.tools import files
from serving.offload import roofline
from serving.offload.plan import OffloadPlanner
from serving.offload.schedule import LaneTask
from serving.offload.simulate import LaneSpan

ROWS = ("device", "host", "to_device", "weights", "to_host", "pin")  # of a panel, from the top

THIN = 0.003  # of the picture's width; a white edge would hide what is thinner

type RowOf = Callable[[LaneTask], str]

COLOURS = {
    "pre": "#7fb08a",
    "post": "#2d6f8e",
    "block": "#4b9a9f",
    "attention": "#c98a5a",
    "offload": "#b8bcc2",
    "store": "#8d949c",
    "load": "#8a6fae",
    "weights": "#d9b13b",
    "kv": "#c25b6a",
    "pin": "#e8d9a0",
}
NAMES = {
    "pre": "projections before attention",
    "post": "output projection and experts",
    "block": "whole layer on the device",
    "attention": "attention on the host",
    "offload": "q, k, v to the host",
    "store": "new K/V to the host",
    "load": "attention output to the device",
    "weights": "expert weights",
    "kv": "K/V to the device",
    "pin": "copy into pinned staging",
}
LANE_NAMES = {
    "device": "device",
    "host": "host CPU",
    "to_device": "host to device",
    "weights": "experts read",
    "to_host": "device to host",
    "pin": "pinned copy",
}


def draw_gantt(
    passes: Mapping[str, Sequence[LaneSpan]],
    out: Path,
    *,
    title: str,
    marked_layer: int = 1,
    row_of: RowOf = attrgetter("lane"),
) -> None:
    """One panel per schedule on a common time axis; the span of `marked_layer` on the device is shaded.

    Args:
      passes: title of a panel -> its tasks with their times, simulated or measured.
      title: says which of the two.
      out: a PNG or SVG file.
      row_of: the row of a task, one of `ROWS`; a runtime's threads are not a machine's lanes.
    """
    end_s = max(span.end_s for spans in passes.values() for span in spans)
    unit, factor = ("ms", 1e3) if end_s < 1 else ("s", 1.0)
    rows = {name: _rows(spans, row_of) for name, spans in passes.items()}
    height = 0.24 * sum(map(len, rows.values())) + 0.45 * len(passes) + 1.3
    figure, axes = plt.subplots(
        len(passes),
        1,
        figsize=(12, height),
        sharex=True,
        squeeze=False,
        height_ratios=[len(lanes) for lanes in rows.values()],
        layout="constrained",
    )
    for axis, (name, spans) in zip(axes[:, 0], passes.items()):
        _panel(axis, spans, marked_layer, rows[name], row_of, factor, end_s)
        end = factor * max(span.end_s for span in spans)
        axis.set_title(f"{name}: {end:.4g} {unit}", loc="left", fontsize=9)
        axis.set_xlim(0, factor * end_s)
    axes[-1, 0].set_xlabel(unit)
    figure.suptitle(title, fontsize=10)
    used = {span.task.kind for spans in passes.values() for span in spans}
    handles = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in NAMES if kind in used]
    handles.append(Patch(color="#e4e4e4", label=f"layer {marked_layer} on the device"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _save(figure, out)


def _rows(spans: Sequence[LaneSpan], row_of: RowOf) -> list[str]:
    """The rows that have tasks, from the top."""
    there = {row_of(span.task) for span in spans}
    return [row for row in ROWS if row in there]


def _panel(
    axis: Axes,
    spans: Sequence[LaneSpan],
    marked_layer: int,
    rows: Sequence[str],
    row_of: RowOf,
    factor: float,
    end_s: float,
) -> None:
    """Draws the tasks of a pass."""
    marked = [s for s in spans if s.task.lane == "device" and s.task.layer == marked_layer]
    if marked:
        start, end = factor * min(s.start_s for s in marked), factor * max(s.end_s for s in marked)
        axis.axvspan(start, end, color="#e4e4e4", zorder=0)
    for row, name in enumerate(rows):
        mine = [span for span in spans if row_of(span.task) == name]
        colours = [COLOURS[span.task.kind] for span in mine]
        wide = [span.end_s - span.start_s > THIN * end_s for span in mine]
        axis.broken_barh(
            [(factor * span.start_s, factor * (span.end_s - span.start_s)) for span in mine],
            (row - 0.4, 0.8),
            facecolors=colours,
            edgecolors=["white" if parted else colour for parted, colour in zip(wide, colours)],
            linewidth=0.3,
        )
    axis.set_yticks(range(len(rows)), [LANE_NAMES[row] for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.spines[["top", "right"]].set_visible(False)


def draw_roofline(planner: OffloadPlanner, micro_batch: int, batch: int, out: Path) -> None:
    """The roofs of the experts on the device, with turning points, attention and the plan's point."""
    peak, shape = roofline.rates(planner.hardware), planner.shape
    near = roofline.ffn_intensity(shape, micro_batch)
    x = np.geomspace(0.5, 10_000, 400)
    figure, axis = plt.subplots(figsize=(8, 5))
    curves = {
        "host, data on the host": [roofline.local(peak.far_flops, peak.far_Bps, i) for i in x],
        "device, data over the link": [min(peak.near_flops, peak.link_Bps * i) for i in x],
        "device, data on the device": [roofline.local(peak.near_flops, peak.near_Bps, i) for i in x],
        f"experts of a micro-batch of {micro_batch}": [roofline.fetched(peak, near, i) for i in x],
    }
    for (name, y), style in zip(curves.items(), ("-", "-", "-", "--")):
        axis.loglog(x, y, style, label=name)
    points = {"P1": roofline.turning_point_1(peak), "P2": roofline.turning_point_2(peak, near)}
    axis.set_xlim(x[0], x[-1])
    for name, value in points.items():
        axis.axvline(value, color="#999999", linewidth=0.8, linestyle=":")
        axis.annotate(f" {name}", (value, 0.02), xycoords=("data", "axes fraction"), fontsize=8)
    here = roofline.ffn_intensity(shape, batch)
    axis.plot(here, roofline.fetched(peak, near, here), "o", color="black", label=f"the plan, N = {batch}")
    attention = roofline.attention_intensity(
        shape, planner.workload.prompt_tok + planner.workload.generate_tok
    )
    axis.plot(
        attention,
        roofline.local(peak.far_flops, peak.far_Bps, attention),
        "s",
        color="#c98a5a",
        label="attention on the host",
    )
    axis.set_xlabel("FLOP per byte read on the host")
    axis.set_ylabel("FLOP/s (bound from peak rates)")
    axis.set_title(f"Experts on {planner.hardware.name}: bounds, not measurements", loc="left", fontsize=9)
    axis.legend(fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, out)


def _save(figure: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(out) as partial:
        figure.savefig(partial, dpi=130, format=out.suffix.removeprefix("."))
    plt.close(figure)


def chrome_trace(
    passes: Mapping[str, Sequence[LaneSpan]], row_of: RowOf = attrgetter("lane")
) -> dict[str, Any]:
    """The passes as a Chrome trace: a process per pass, a thread per row, microseconds."""
    events: list[dict[str, Any]] = []
    for process, (name, spans) in enumerate(passes.items()):
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}})
        for thread in map(ROWS.index, _rows(spans, row_of)):
            label = {"name": LANE_NAMES[ROWS[thread]]}
            events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": label})
        for span in spans:
            events.append(
                {
                    "ph": "X",
                    "name": f"{span.task.kind} {span.task.layer},{span.task.part}",
                    "cat": span.task.kind,
                    "pid": process,
                    "tid": ROWS.index(row_of(span.task)),
                    "ts": span.start_s * 1e6,
                    "dur": (span.end_s - span.start_s) * 1e6,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}
