"""Our figures beside the papers', over several seeds: results/fairness/paper.csv.

One row per figure of a paper or its logs: our mean and 95 % interval, the ratio, and, where the figure is
outside what is expected of a simulator (5 % of a throughput, 30 % of anything else), what is known of the
reason.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pallas_kernels import results
from serving.fair.statistics import interval
from serving.sim import seeds as over_seeds
from serving.sim.experiment import FairnessExperiment, PolicyOutcome
from serving.sim.suites import fairness, table

NAME = "paper.csv"
TOLERANCE = {"tok_per_s": 0.05}
OTHER_TOLERANCE = 0.30
# "supposed" is what was not tried by changing it alone.
# (experiment, policy, metric) -> why; "" stands for any policy or metric. The most specific one is used.
REASONS = {
    (
        "E1",
        "vtc oracle",
        "",
    ): "19 requests fit, an odd number, so that one client always has one more in flight; "
    "with room for 20 the difference is 0.8",
    ("E1", "vtc +-50%", ""): "supposed: a difference of a few tokens/s, of the size of one request in flight",
    ("E1", "vtc", "max_diff"): "supposed: the largest of 19 windows depends on the phase of the arrivals",
    (
        "E1",
        "vtc",
        "avg_diff",
    ): "supposed: depends on the phase of the arrivals and on admission every 10 steps",
    (
        "E2",
        "",
        "ttft_mean_s",
    ): "supposed: seconds of wait at a load just above capacity move with a few % of throughput",
    (
        "E3",
        "",
        "ttft_mean_s",
    ): "supposed: the wait is what is left of each period of 60 s; it moves with a few % of throughput",
    ("E4", "", ""): "supposed: rates of finished requests; the published runs end before the queue is served",
    (
        "E5",
        "",
        "ttft_mean_s",
    ): "supposed: fractions of a second: an admission attempt every 10 steps alone takes a third of one",
    (
        "E6",
        "lcf",
        "",
    ): "supposed: in ours the first client asks for less than its share for shorter, and hoards less credit",
    (
        "E6",
        "vtc",
        "",
    ): "supposed: differences of a few dozen tokens/s in phases with room for both; theirs are smaller",
    (
        "E7",
        "",
        "",
    ): "supposed: eight clients and 38 requests in memory: who has 4 and who has 5 in flight decides",
    (
        "E8",
        "rpm 5",
        "",
    ): "supposed: the published trace is bursty, ours is Poisson: a limit per minute refuses less of it",
    ("E8", "rpm 10", ""): "as for rpm 5",
    ("E8", "rpm 15", ""): "as for rpm 5",
    ("E8", "rpm 20", ""): "as for rpm 5",
    ("E8", "rpm 30", ""): "as for rpm 5",
    ("E8", "", "max_diff"): "the largest of 19 windows of a random trace; the published one is lost",
    ("E8", "", "avg_diff"): "the published trace is lost; ours has its counts and quantiles only",
    (
        "E8",
        "",
        "tok_per_s",
    ): "lengths are drawn from two quantiles of the published trace, whose sum is not known",
    ("E10", "", ""): "supposed: the figure is the largest of a run: it depends on admissions every 10 steps",
    ("E11", "", ""): "a constructed case of ours; the other figure is of another simulator",
}


def run_suite(out: Path, *, only: Sequence[str] = (), seeds: int, clock: Callable[[], float]) -> None:
    """Runs the experiments that have figures of a paper, and replaces their rows of the table one by one."""
    console = Console(stderr=True)
    for experiment in fairness.experiments(only):
        if not experiment.paper:
            continue
        start = clock()
        wanted = [run for run in experiment.runs if run.name in experiment.paper]
        outcomes: dict[str, list[PolicyOutcome]] = {}
        first = experiment.seed
        for _, outcome in over_seeds.outcomes(experiment, range(first, first + seeds), runs=wanted):
            outcomes.setdefault(outcome.run.name, []).append(outcome)
        update(out, experiment, paper_rows(experiment, outcomes), seeds)
        console.print(f"{experiment.id:12} {len(wanted):2} policies, {seeds} seeds, {clock() - start:6.1f} s")


def paper_rows(
    experiment: FairnessExperiment, outcomes: dict[str, list[PolicyOutcome]]
) -> list[dict[str, Any]]:
    """A row per figure of the experiment's paper."""
    rows = []
    for policy, figures in experiment.paper.items():
        own = [outcome.row() for outcome in outcomes[policy]]
        clients = [{line["client"]: line for line in o.client_rows()} for o in outcomes[policy]]
        for name, figure in figures.items():
            client, _, metric = name.rpartition(" ")
            values = [float((lines[client] if client else row)[metric]) for row, lines in zip(own, clients)]
            found = interval(values)
            ratio = found.mean / figure
            rows.append(
                {
                    "experiment": experiment.id,
                    "policy": policy,
                    "client": client,
                    "metric": metric,
                    "paper": figure,
                    **{key: float(f"{getattr(found, key):.5g}") for key in ("mean", "low", "high")},
                    "seeds": found.runs,
                    "ratio": float(f"{ratio:.3g}"),
                    "deviation": deviation(experiment.id, policy, metric, ratio),
                }
            )
    return rows


def deviation(experiment: str, policy: str, metric: str, ratio: float) -> str:
    """Words on a figure outside the tolerance; "" within it."""
    if math.isnan(ratio) or abs(ratio - 1) <= TOLERANCE.get(metric, OTHER_TOLERANCE):
        return ""
    family = experiment.partition("-")[0].removesuffix("b")
    for key in ((policy, metric), (policy, ""), ("", metric), ("", "")):
        if reason := REASONS.get((family, *key)):
            return reason
    return "not explained"


def update(out: Path, experiment: FairnessExperiment, rows: list[dict[str, Any]], seeds: int) -> None:
    """Replaces the experiment's rows; those of others stay."""
    path = out / NAME
    out.mkdir(parents=True, exist_ok=True)
    kept: list[dict[str, Any]] = []
    recipe: dict[str, str] = {}
    if path.exists():
        kept = [row for row in results.read_csv(path) if row["experiment"] != experiment.id]
        recipe = {k: v for k, v in results.read_recipe(path).items() if k not in results.SURROUNDINGS}
    recipe["about"] = (
        "our mean and 95 % interval over seeds beside the figure of a paper or its logs; "
        "ratio: mean / paper; "
        "deviation: what is known of a ratio outside 5 % (throughput) or 30 %"
    )
    words = table.provenance(
        f"{experiment.title}; {seeds} seeds from {experiment.seed}", device=results.VIRTUAL
    )
    recipe[experiment.id] = words
    elsewhere = dict.fromkeys(results.SURROUNDINGS, "of each experiment below")
    about = {"about": recipe.pop("about")}
    head: dict[str, Any] = {**about, **elsewhere, **recipe}
    results.write_csv(path, [*kept, *rows], **head)
