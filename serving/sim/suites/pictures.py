"""Pictures of a fairness experiment: service, gap and latency by policy, and throughput against fairness."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import SubFigure

from mixattn.tools import files
from serving.sim.experiment import FairnessExperiment, PolicyOutcome

COLOURS = plt.get_cmap("tab10").colors


def draw(path: Path, experiment: FairnessExperiment, outcomes: Sequence[PolicyOutcome]) -> None:
    """Draws the panels `experiment.plots`, one below the other, into a PNG file."""
    panels = {"service": _draw_service, "gap": _draw_gap, "latency": _draw_latency, "pareto": _draw_pareto}
    columns = min(4, max(1, len(outcomes))) if "service" in experiment.plots else 1
    figure = plt.figure(
        figsize=(max(7.0, 3.6 * columns), 3.4 * len(experiment.plots) + 0.5), layout="constrained"
    )
    title = textwrap.fill(f"{experiment.id}. {experiment.title}", int(11 * figure.get_figwidth()))
    figure.suptitle(title, fontsize=11)
    for panel, name in zip(
        figure.subfigures(len(experiment.plots), 1, squeeze=False)[:, 0], experiment.plots
    ):
        panels[name](panel, outcomes)
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def _draw_service(panel: SubFigure, outcomes: Sequence[PolicyOutcome]) -> None:
    shown = outcomes[:4] if len(outcomes) <= 4 else [outcomes[i] for i in (0, 2, 3, -2)]
    axes = panel.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, outcome in zip(axes, shown):
        for i, (client, curve) in enumerate(outcome.curves()["service"].items()):
            axis.plot(*zip(*curve), label=client if i < 10 else None, color=COLOURS[i % 10], lw=1.4)
        axis.set_title(outcome.run.name, fontsize=9)
        axis.set_xlabel("time [s]", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0].set_ylim(bottom=0)  # shared by all axes, so after the last curve
    axes[0].set_ylabel("service [weighted tok/s]", fontsize=8)
    axes[-1].legend(fontsize=7, loc="upper right", ncols=2 if len(outcomes[0].report.service) > 5 else 1)


def _draw_gap(panel: SubFigure, outcomes: Sequence[PolicyOutcome]) -> None:
    axis = panel.subplots()
    bounds: dict[float, tuple[str, bool]] = {}
    for i, outcome in enumerate(outcomes):
        axis.plot(*zip(*outcome.curves()["gap"]), label=outcome.run.name, color=COLOURS[i % 10], lw=1.4)
        if outcome.nominal_bound is not None:
            bounds.setdefault(outcome.nominal_bound, (outcome.run.name, outcome.bound is not None))
    for bound, (name, proven) in bounds.items():
        axis.axhline(bound, color="black", ls="--" if proven else ":", lw=0.9)
        axis.annotate(
            f"2U of {name}" + ("" if proven else ", not proven for this admission"),
            (0.01, bound),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            va="bottom",
        )
    axis.set_yscale("symlog", linthresh=100)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("time [s]", fontsize=8)
    axis.set_ylabel("accumulated gap [weighted tok]", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_latency(panel: SubFigure, outcomes: Sequence[PolicyOutcome]) -> None:
    axis = panel.subplots()
    clients = list(outcomes[0].report.service)
    lines = [{line["client"]: line for line in outcome.client_rows()} for outcome in outcomes]
    width = 0.8 / max(1, len(clients))
    for i, client in enumerate(sorted(clients)):
        places = [x - 0.4 + width * (i + 0.5) for x in range(len(outcomes))]
        median = [line.get(client, {}).get("ttft_p50_s", 0.0) for line in lines]
        p99 = [line.get(client, {}).get("ttft_p99_s", 0.0) for line in lines]
        axis.bar(places, median, width * 0.9, color=COLOURS[i % 10], label=client)
        axis.vlines(places, median, p99, color=COLOURS[i % 10], lw=1)
    axis.set_xticks(range(len(outcomes)), [outcome.run.name for outcome in outcomes], fontsize=7)
    if len(outcomes) > 4:
        axis.tick_params(axis="x", labelrotation=25)
    axis.set_ylabel("time to first token [s]\nbar: median, line: to p99", fontsize=8)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_pareto(panel: SubFigure, outcomes: Sequence[PolicyOutcome]) -> None:
    axis = panel.subplots()
    rows = [outcome.row() for outcome in outcomes]
    # On a cluster, the latency of clients; on one worker, the gap that has a bound.
    cluster = len(outcomes[0].result.busy_s) > 1
    x = "jain_ttft" if cluster else "backlogged_gap"
    family = "d2lpm" if cluster else "dlpm"
    swept = [row for row in rows if row["run"].startswith(family)]
    axis.plot([r[x] for r in swept], [r["req_per_s"] for r in swept], color="0.8", zorder=1)
    for i, row in enumerate(rows):
        axis.scatter(
            row[x], row["req_per_s"], color=COLOURS[i % 10], s=36, zorder=3, label=row["run"],
            marker="os^D"[i // 10],
        )  # fmt: skip
    if cluster:
        axis.set_xlabel("fairness: Jain's index of the clients' median times to first token", fontsize=8)
    else:
        axis.set_xscale("log")
        axis.set_xlabel("largest service gap of two clients that both wait [weighted tok]", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.set_ylabel("requests/s", fontsize=8)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
