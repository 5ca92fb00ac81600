"""Panels of dots and whiskers: the measures of every policy side by side, and service per weight."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from serving.fair.statistics import Interval, interval
from serving.sim.experiment import FairnessExperiment, PolicyOutcome

# Figure, its words, which end is better, and whether it needs a logarithmic axis.
MEASURES = (
    ("tok_per_s", "tokens/s", "right", False),
    ("avg_diff", "service difference\n[weighted tok/s]", "left", False),
    ("lag", "lag behind a\nfluid server [tok]", "left", True),
    ("pause_s", "longest pause of\na waiting client [s]", "left", True),
    ("worst_ttft_p99_s", "p99 TTFT of the\nworst client [s]", "left", True),
)
MARKERS = "os^Dv<>P"


def draw_measures(
    panel: SubFigure, experiment: FairnessExperiment, outcomes: Mapping[str, Sequence[PolicyOutcome]]
) -> None:
    """One row per policy, one column per measure."""
    rows = {name: [outcome.row() for outcome in over_seeds] for name, over_seeds in outcomes.items()}
    axes = panel.subplots(1, len(MEASURES), sharey=True)
    for axis, (figure, words, better, log) in zip(axes, MEASURES):
        for y, own in enumerate(rows.values()):
            dot(axis, interval([float(row[figure]) for row in own]), y, "o", "#0072B2")
        values = [row[figure] for own in rows.values() for row in own if not math.isnan(row[figure])]
        if log and values and min(values) > 0 and max(values) > 4 * min(values):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
            axis.xaxis.set_major_formatter(FuncFormatter(plain_number))
            axis.xaxis.set_minor_locator(NullLocator())
        else:
            axis.set_xlim(left=0)
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(f"{words}\n({better} is better)", fontsize=7)
        axis.tick_params(axis="x", labelsize=6, which="both")
        axis.grid(axis="y", alpha=0.3, lw=0.5)
    axes[0].set_yticks(range(len(rows)), list(rows), fontsize=7)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)


def draw_shares(
    panel: SubFigure, experiment: FairnessExperiment, outcomes: Mapping[str, Sequence[PolicyOutcome]]
) -> None:
    """Service per unit of weight of every client: equal where sharing follows the weights."""
    axis = panel.subplots()
    names = list(outcomes)
    clients = sorted(experiment.weights or outcomes[names[0]][0].report.service)
    for y, name in enumerate(names):
        for i, client in enumerate(clients):
            weight = experiment.weights.get(client, 1.0)
            rates = [
                line["service_per_s"] / weight
                for outcome in outcomes[name]
                for line in outcome.client_rows()
                if line["client"] == client
            ]
            place = y + 0.16 * (i - (len(clients) - 1) / 2)
            found = interval(rates)
            dot(axis, found, place, MARKERS[i % 8], "#0072B2" if i % 2 else "#D55E00")
            axis.annotate(
                f"{client}, weight {weight:g}",
                (found.mean if math.isnan(found.high) else found.high, place),
                xytext=(7, 0),
                textcoords="offset points",
                fontsize=6,
                va="center",
            )
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.margins(x=0.2)
    axis.set_xlabel("service per unit of weight while requests arrive [weighted tok/s]")


def dot(axis: Axes, found: Interval, y: float, marker: str, colour: str) -> None:
    """A mean with its interval."""
    if math.isnan(found.mean):
        return
    error = None if math.isnan(found.high) else [[found.mean - found.low], [found.high - found.mean]]
    axis.errorbar(found.mean, y, xerr=error, fmt=marker, color=colour, ms=3.5, lw=1, capsize=2)


def plain_number(value: float, _: object) -> str:
    """A short number, without powers of ten."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
