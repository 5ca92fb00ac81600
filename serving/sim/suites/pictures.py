"""Vector pictures of an experiment: lines and whiskers are means and 95 % intervals over the seeds.

Lines carry their names at their ends and differ in style as well as in colour, so that they can be told apart
in print without colours.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mixattn.tools import files
from serving.fair.statistics import Interval, interval
from serving.sim.experiment import FairnessExperiment, PolicyOutcome
from serving.sim.suites.measures_picture import draw_measures, draw_shares, plain_number

type Outcomes = Mapping[str, Sequence[PolicyOutcome]]
"""The outcomes of each run over the seeds."""
type Curve = Sequence[tuple[float, float]]

# Okabe and Ito's colours, which most colour-blind readers can tell apart, without yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
RC = {
    "svg.hashsalt": "mixattn",  # the same run draws the same bytes
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(path: Path, experiment: FairnessExperiment, outcomes: Outcomes) -> None:
    """Draws the panels `experiment.plots`, one below the other, into an SVG file."""
    panels: dict[
        str, tuple[Callable[[SubFigure, FairnessExperiment, Outcomes], None], Callable[[int], float]]
    ] = {
        "service": (_draw_service, lambda runs: 2.4),
        "gap": (_draw_gap, lambda runs: 3.0),
        "latency": (_draw_latency, lambda runs: 3.0),
        "pareto": (_draw_pareto, lambda runs: 3.4),
        "measures": (draw_measures, lambda runs: 0.9 + 0.22 * runs),
        "shares": (draw_shares, lambda runs: 0.9 + 0.45 * runs),
    }
    heights = [panels[name][1](len(outcomes)) for name in experiment.plots]
    seeds = len(next(iter(outcomes.values())))
    with plt.rc_context(RC):
        figure = plt.figure(figsize=(7.2, sum(heights) + 0.6), layout="constrained")
        title = f"{experiment.id}. {experiment.title}"
        over = f"mean and 95 % interval over {seeds} seeds" if seeds > 1 else "one seed"
        figure.suptitle("\n".join(textwrap.wrap(f"{title} (simulated; {over})", 105)), fontsize=9)
        rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, name in zip(rows, experiment.plots):
            panels[name][0](panel, experiment, outcomes)
        with files.whole(path) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})
        plt.close(figure)


def style(index: int) -> dict[str, object]:
    """Colour and dashes of the curve of that number."""
    return {"color": COLOURS[index % len(COLOURS)], "ls": STYLES[index % len(STYLES)]}


def average(curves: Sequence[Curve]) -> list[tuple[float, Interval]]:
    """The mean curve of curves with the same times, point by point."""
    return [(points[0][0], interval([value for _, value in points])) for points in zip(*curves)]


def plot_mean(axis: Axes, curves: Sequence[Curve], index: int, label: str = "") -> tuple[float, float]:
    """Draws a mean curve with its interval; returns its end."""
    points = average(curves)
    times, means = [t for t, _ in points], [found.mean for _, found in points]
    look = style(index)
    axis.plot(times, means, lw=1.3, label=label, **look)  # type: ignore[arg-type]
    if len(curves) > 1:
        low, high = [f.low for _, f in points], [f.high for _, f in points]
        axis.fill_between(times, low, high, color=look["color"], alpha=0.15, lw=0)
    return times[-1], means[-1]


def label_ends(
    axis: Axes, ends: Sequence[tuple[float, float, str, int]], log: bool = False, leaders: bool = False
) -> None:
    """Writes names to the right of the axes, at the heights of curve ends or moved apart from each other.

    Args:
      ends: (x, y, name, number of its style).
      leaders: draw a thin line from each point to its name.
    """
    low, high = axis.get_ylim()
    scale = (lambda y: math.log10(max(y, 1e-9))) if log else (lambda y: y)
    bottom = scale(low)
    height = scale(high) - bottom or 1.0
    points_high = axis.bbox.height * 72 / axis.figure.dpi
    least = 9.0 / max(points_high, 1.0)  # of the axis height, for a line of text
    at, placed = -math.inf, []
    for place, x, y, name, i in sorted(((scale(end[1]) - bottom) / height, *end) for end in ends):
        at = max(place, at + least)
        placed.append((at, x, y, name, i))
    over = max(0.0, placed[-1][0] - 1.0) if placed else 0.0
    for place, x, y, name, i in placed:
        axis.annotate(
            name,
            (x, y) if leaders else (1.01, place - over),
            xycoords="data" if leaders else "axes fraction",
            xytext=(1.01, place - over),
            textcoords="axes fraction",
            color=COLOURS[i % len(COLOURS)],
            va="center",
            fontsize=7,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.7"} if leaders else None,
        )


def _draw_service(panel: SubFigure, experiment: FairnessExperiment, outcomes: Outcomes) -> None:
    names = list(outcomes)
    shown = names if len(names) <= 4 else [names[i] for i in (0, 2, 3, -2)]
    axes = panel.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, shown):
        curves = [outcome.curves()["service"] for outcome in outcomes[name]]
        ends = []
        for i, client in enumerate(sorted(curves[0])):
            known = [curve[client] for curve in curves if client in curve]
            weight = experiment.weights.get(client, 1.0)
            scaled = [[(t, rate / weight) for t, rate in curve] for curve in known]
            ends.append((*plot_mean(axis, scaled, i), client, i))
        axis.set_title(name)
        axis.set_xlabel("time [s]")
        if axis is axes[-1]:
            axis.set_ylim(bottom=0)
            label_ends(axis, ends[:12])
    per = " per weight" if experiment.weights else ""
    axes[0].set_ylabel(f"service{per} [weighted tok/s]")
    axes[0].set_ylim(bottom=0)


def _draw_gap(panel: SubFigure, experiment: FairnessExperiment, outcomes: Outcomes) -> None:
    axis = panel.subplots()
    ends = []
    bounds: dict[float, tuple[str, bool]] = {}
    for i, (name, over_seeds) in enumerate(outcomes.items()):
        ends.append((*plot_mean(axis, [o.curves()["gap"] for o in over_seeds], i), name, i))
        first = over_seeds[0]
        if first.nominal_bound is not None:
            bounds.setdefault(first.nominal_bound, (name, first.bound is not None))
    axis.set_yscale("log")
    axis.set_ylim(bottom=100)
    for bound, (name, proven) in bounds.items():
        axis.axhline(bound, color="0.4", ls="-" if proven else (0, (1, 3)), lw=0.8)
        words = f"bound of {name}" + ("" if proven else ", not proven for this admission")
        axis.annotate(
            words, (0.01, bound), xycoords=("axes fraction", "data"), fontsize=6.5, va="bottom", color="0.3"
        )
    axis.set_xlabel("time [s]")
    per = " per weight" if experiment.weights else ""
    axis.set_ylabel(f"accumulated gap{per} [weighted tok]")
    label_ends(axis, ends, log=True)


def _draw_latency(panel: SubFigure, experiment: FairnessExperiment, outcomes: Outcomes) -> None:
    axis = panel.subplots()
    rows = {
        name: [{line["client"]: line for line in outcome.client_rows()} for outcome in over_seeds]
        for name, over_seeds in outcomes.items()
    }
    clients = sorted({client for lines in rows.values() for line in lines for client in line})[:8]
    width = 0.8 / max(1, len(clients))
    for i, client in enumerate(clients):
        for x, lines in enumerate(rows.values()):
            at = x - 0.4 + width * (i + 0.5)
            median, p99 = (
                interval([line[client][f"ttft_{p}_s"] for line in lines if client in line])
                for p in ("p50", "p99")
            )
            colour = COLOURS[i % len(COLOURS)]
            axis.plot([at, at], [max(median.mean, 1e-3), max(p99.mean, 1e-3)], color=colour, lw=1.2)
            axis.plot(
                at, max(median.mean, 1e-3), "os^Dv<>P"[i], color=colour, ms=4, label=client if not x else None
            )
            if not math.isnan(p99.high):
                axis.plot([at, at], [max(p99.low, 1e-3), p99.high], color=colour, lw=3.5, alpha=0.3)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(plain_number))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(range(len(rows)), [textwrap.fill(name, 12) for name in rows], fontsize=7)
    axis.set_ylabel(
        "time to first token [s]\nmarker: median, line: to p99,\nshade: interval of the p99", fontsize=7
    )
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_pareto(panel: SubFigure, experiment: FairnessExperiment, outcomes: Outcomes) -> None:
    """Throughput against the worst client's p99 TTFT (a cluster), or the largest lag (one server)."""
    axis = panel.subplots()
    rows = {name: [outcome.row() for outcome in over_seeds] for name, over_seeds in outcomes.items()}
    cluster = len(next(iter(outcomes.values()))[0].result.busy_s) > 1
    x, family = ("worst_ttft_p99_s", "d2lpm") if cluster else ("lag", "dlpm")
    found = {
        name: (interval([float(row[x]) for row in own]), interval([float(row["req_per_s"]) for row in own]))
        for name, own in rows.items()
    }
    ends: list[tuple[float, float, str, int]] = []
    swept = [point for name, point in found.items() if name.startswith(family)]
    axis.plot([p[0].mean for p in swept], [p[1].mean for p in swept], color="0.75", lw=1, zorder=1)
    for i, (name, (across, up)) in enumerate(found.items()):
        colour = COLOURS[i % len(COLOURS)]
        axis.errorbar(
            across.mean,
            up.mean,
            xerr=None if math.isnan(across.high) else across.high - across.mean,
            yerr=None if math.isnan(up.high) else up.high - up.mean,
            fmt="os^Dv<>P"[i % 8],
            color=colour,
            ms=4,
            lw=0.9,
        )
        ends.append((across.mean, up.mean, name, i))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axis.xaxis.set_minor_formatter(NullFormatter())
    words = (
        "p99 time to first token of the worst client [s]" if cluster else "largest lag behind a fluid server"
    )
    axis.set_xlabel(f"{words} (log; left is fairer)")
    axis.set_ylabel("requests/s")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25, lw=0.5)
    label_ends(axis, ends, leaders=True)
