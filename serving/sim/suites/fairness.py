"""The fairness suite: every experiment of configs/fair_*.py into CSV files and pictures, beside the
papers' figures."""

import importlib.util
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console

from mixattn.tools import files
from pallas_kernels import results
from serving.sim.experiment import FairnessExperiment, PolicyOutcome, run
from serving.sim.vtc_artifact import table_row

ROOT = Path(__file__).resolve().parents[3]
COLOURS = plt.get_cmap("tab10").colors


def experiments(only: Sequence[str] = ()) -> list[FairnessExperiment]:
    """All variants of all configs/fair_*.py, or those named.

    Raises:
      ValueError: a name that no config has.
    """
    found = []
    for path in sorted((ROOT / "configs").glob("fair_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [module.get_config(variant) for variant in module.VARIANTS]
    known = {experiment.id: experiment for experiment in found}
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"unknown experiment {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in only] if only else found


def run_suite(out: Path, *, only: Sequence[str] = (), clock: Callable[[], float]) -> None:
    """Runs experiments one after the other; what is finished is on disk, so Ctrl-C loses only the present
    one."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    for experiment in experiments(only):
        began = clock()
        jobs = experiment.workload()
        outcomes = [run(experiment, which, jobs=jobs, clock=clock) for which in experiment.runs]
        save(out, experiment, outcomes)
        console.print(
            f"{experiment.id:12} {len(jobs):6} requests, {len(outcomes):2} runs, {clock() - began:5.1f} s"
        )
    write_comparison(out)


def save(out: Path, experiment: FairnessExperiment, outcomes: Sequence[PolicyOutcome]) -> None:
    """Writes ID.csv (a line a run), ID_clients.csv, ID_paper.csv where there are figures, and ID.png."""
    rows = [table_row(outcome.row()) for outcome in outcomes]
    clients = [table_row(line) for outcome in outcomes for line in outcome.client_rows()]
    note = header(experiment)
    write_csv(out / f"{experiment.id}.csv", rows, note)
    if len(clients) <= 100:
        write_csv(out / f"{experiment.id}_clients.csv", clients, note)
    if compared := list(beside_paper(experiment, rows, clients)):
        write_csv(out / f"{experiment.id}_paper.csv", compared, note)
    draw(out / f"{experiment.id}.png", experiment, outcomes)


def beside_paper(
    experiment: FairnessExperiment, rows: Sequence[dict[str, Any]], clients: Sequence[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Our figures beside those of the paper or its logs. A metric "CLIENT NAME" is of one client."""
    for name, figures in experiment.paper.items():
        for metric, theirs in figures.items():
            client, _, of_client = metric.partition(" ")
            if of_client:
                line = next(r for r in clients if r["run"] == name and r["client"] == client)
                ours = line[of_client]
            else:
                ours = next(r for r in rows if r["run"] == name)[metric]
            ratio = float(f"{ours / theirs:.3g}")
            yield {
                "experiment": experiment.id,
                "run": name,
                "metric": metric,
                "paper": theirs,
                "ours": ours,
                "ratio": ratio,
            }


def write_comparison(out: Path) -> None:
    """Gathers all ID_paper.csv into paper.csv."""
    lines: list[dict[str, Any]] = []
    for path in sorted(out.glob("E*_paper.csv")):
        lines += results.read_csv(path)
    if lines:
        write_csv(out / "paper.csv", lines, "every figure of a paper or its logs beside ours")


def header(experiment: FairnessExperiment) -> str:
    return f"{experiment.id}: {experiment.title}; seed {experiment.seed}"


def write_csv(path: Path, rows: Sequence[dict[str, Any]], note: str) -> None:
    results.write_csv(path, rows, about=note, device=results.VIRTUAL)


def draw(path: Path, experiment: FairnessExperiment, outcomes: Sequence[PolicyOutcome]) -> None:
    panels = {"service": _draw_service, "gap": _draw_gap, "latency": _draw_latency, "pareto": _draw_pareto}
    wide = max(1, len(outcomes)) if "service" in experiment.plots else 1
    wide = min(wide, 4)
    figure = plt.figure(
        figsize=(max(7.0, 3.6 * wide), 3.4 * len(experiment.plots) + 0.5), layout="constrained"
    )
    title = textwrap.fill(f"{experiment.id}. {experiment.title}", int(11 * figure.get_figwidth()))
    figure.suptitle(title, fontsize=11)
    for part, name in zip(figure.subfigures(len(experiment.plots), 1, squeeze=False)[:, 0], experiment.plots):
        panels[name](part, outcomes)
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def _draw_service(part: Any, outcomes: Sequence[PolicyOutcome]) -> None:
    shown = outcomes[:4] if len(outcomes) <= 4 else [outcomes[i] for i in (0, 2, 3, -2)]
    axes = part.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, outcome in zip(axes, shown):
        for i, (client, curve) in enumerate(outcome.curves()["service"].items()):
            axis.plot(*zip(*curve), label=client if i < 10 else None, color=COLOURS[i % 10], lw=1.4)
        axis.set_title(outcome.run.name, fontsize=9)
        axis.set_xlabel("time [s]", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0].set_ylim(bottom=0)  # shared by all, so only now that everything is drawn
    axes[0].set_ylabel("service [weighted tok/s]", fontsize=8)
    axes[-1].legend(fontsize=7, loc="upper right", ncols=2 if len(outcomes[0].report.service) > 5 else 1)


def _draw_gap(part: Any, outcomes: Sequence[PolicyOutcome]) -> None:
    axis = part.subplots()
    bounds: dict[float, tuple[str, bool]] = {}
    for i, outcome in enumerate(outcomes):
        axis.plot(*zip(*outcome.curves()["gap"]), label=outcome.run.name, color=COLOURS[i % 10], lw=1.4)
        if outcome.hoped is not None:
            bounds.setdefault(outcome.hoped, (outcome.run.name, outcome.bound is not None))
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


def _draw_latency(part: Any, outcomes: Sequence[PolicyOutcome]) -> None:
    axis = part.subplots()
    clients = list(outcomes[0].report.service)
    lines = [{line["client"]: line for line in outcome.client_rows()} for outcome in outcomes]
    width = 0.8 / max(1, len(clients))
    for i, client in enumerate(sorted(clients)):
        places = [at - 0.4 + width * (i + 0.5) for at in range(len(outcomes))]
        middle = [line.get(client, {}).get("ttft_p50_s", 0.0) for line in lines]
        worst = [line.get(client, {}).get("ttft_p99_s", 0.0) for line in lines]
        axis.bar(places, middle, width * 0.9, color=COLOURS[i % 10], label=client)
        axis.vlines(places, middle, worst, color=COLOURS[i % 10], lw=1)
    axis.set_xticks(range(len(outcomes)), [outcome.run.name for outcome in outcomes], fontsize=7)
    if len(outcomes) > 4:
        axis.tick_params(axis="x", labelrotation=25)
    axis.set_ylabel("time to first token [s]\nbar: median, line: to p99", fontsize=8)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_pareto(part: Any, outcomes: Sequence[PolicyOutcome]) -> None:
    axis = part.subplots()
    rows = [outcome.row() for outcome in outcomes]
    # Of a cluster, what each client feels; on one worker, the gap that is bounded.
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
