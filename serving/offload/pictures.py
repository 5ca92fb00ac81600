"""Draws schedules as Gantt charts and plans on the roofline, and writes passes as Chrome traces.

The only module here that imports matplotlib (the extra `report`).
"""

from collections.abc import Mapping, Sequence
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
from serving.offload.schedule import LANES
from serving.offload.simulate import LaneSpan

COLOURS = {
    "pre": "#7fb08a",
    "post": "#2d6f8e",
    "block": "#2d6f8e",
    "attention": "#c98a5a",
    "offload": "#b8bcc2",
    "store": "#b8bcc2",
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
    "to_host": "device to host",
    "pin": "pinned copy",
}


def draw_gantt(
    passes: Mapping[str, Sequence[LaneSpan]], out: Path, *, title: str, marked_layer: int = 1
) -> None:
    """One panel per schedule on a common time axis; the span of `marked_layer` on the device is shaded.

    Args:
      passes: title of a panel -> its tasks with their times, simulated or measured.
      title: says which of the two.
      out: a PNG or SVG file.
    """
    figure, axes = plt.subplots(
        len(passes), 1, figsize=(12, 1.9 * len(passes) + 1), sharex=True, squeeze=False
    )
    end_s = max(span.end_s for spans in passes.values() for span in spans)
    used: set[str] = set()
    for axis, (name, spans) in zip(axes[:, 0], passes.items()):
        used |= _panel(axis, spans, marked_layer)
        axis.set_title(f"{name}: {max(span.end_s for span in spans):.3g} s", loc="left", fontsize=9)
        axis.set_xlim(0, end_s)
    axes[-1, 0].set_xlabel("seconds")
    figure.suptitle(title, fontsize=10)
    handles = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in NAMES if kind in used]
    handles.append(Patch(color="#eeeeee", label=f"layer {marked_layer} on the device"))
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.35 / (0.5 + len(passes)) / 2 + 0.02, 1, 1))
    _save(figure, out)


def _panel(axis: Axes, spans: Sequence[LaneSpan], marked_layer: int) -> set[str]:
    """Draws the lanes that have tasks; returns the kinds drawn."""
    lanes = [lane for lane in LANES if any(span.task.lane == lane for span in spans)]
    marked = [s for s in spans if s.task.lane == "device" and s.task.layer == marked_layer]
    if marked:
        axis.axvspan(min(s.start_s for s in marked), max(s.end_s for s in marked), color="#eeeeee", zorder=0)
    for row, lane in enumerate(lanes):
        mine = [span for span in spans if span.task.lane == lane]
        axis.broken_barh(
            [(span.start_s, span.end_s - span.start_s) for span in mine],
            (row - 0.4, 0.8),
            facecolors=[COLOURS[span.task.kind] for span in mine],
            edgecolor="white",
            linewidth=0.3,
        )
    axis.set_yticks(range(len(lanes)), [LANE_NAMES[lane] for lane in lanes], fontsize=8)
    axis.invert_yaxis()
    return {span.task.kind for span in spans}


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
    for name, value in points.items():
        axis.axvline(value, color="#999999", linewidth=0.8, linestyle=":")
        axis.annotate(name, (value, axis.get_ylim()[0] * 1.5), fontsize=8)
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
    axis.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, out)


def _save(figure: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(out) as partial:
        figure.savefig(partial, dpi=130, format=out.suffix.removeprefix("."))
    plt.close(figure)


def chrome_trace(passes: Mapping[str, Sequence[LaneSpan]]) -> dict[str, Any]:
    """The passes as a Chrome trace: a process per pass, a thread per lane, microseconds."""
    events: list[dict[str, Any]] = []
    for process, (name, spans) in enumerate(passes.items()):
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}})
        for thread, lane in enumerate(LANES):
            label = {"name": LANE_NAMES[lane]}
            events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": label})
        for span in spans:
            events.append(
                {
                    "ph": "X",
                    "name": f"{span.task.kind} {span.task.layer},{span.task.part}",
                    "cat": span.task.kind,
                    "pid": process,
                    "tid": LANES.index(span.task.lane),
                    "ts": span.start_s * 1e6,
                    "dur": (span.end_s - span.start_s) * 1e6,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}
