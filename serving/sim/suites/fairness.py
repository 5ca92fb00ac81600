"""The fairness suite: every experiment of configs/fair_*.py and cluster_*.py, into the table or pictures."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pallas_kernels import results
from serving.sim import seeds as over_seeds
from serving.sim.experiment import FairnessExperiment, PolicyOutcome, run
from serving.sim.suites import table
from serving.sim.suites.table import TableRow

MAX_CLIENT_ROWS = 100  # of an experiment with more, only the figures of all clients together are kept
ROOT = Path(__file__).resolve().parents[3]


def experiments(only: Sequence[str] = ()) -> list[FairnessExperiment]:
    """All variants of all configs/fair_*.py and cluster_*.py, or those named. A config without `VARIANTS` is
    none of the suite's.

    Raises:
      ValueError: a name that no config has.
    """
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        if not path.name.startswith(("fair_", "cluster_")):
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [module.get_config(variant) for variant in getattr(module, "VARIANTS", ())]
    known = {experiment.id: experiment for experiment in found}
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"unknown experiment {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in only] if only else found


def run_suite(out: Path, *, only: Sequence[str] = (), clock: Callable[[], float]) -> None:
    """Runs experiments one after the other and updates their rows of the table after each.

    Ctrl-C loses only the experiment in progress.
    """
    out.mkdir(parents=True, exist_ok=True)
    for experiment, outcomes in _outcomes(only, clock):
        title = f"{experiment.title}; seed {experiment.seed}"
        source = {experiment.id: table.provenance(title, device=results.VIRTUAL)}
        table.update(out, source, table_rows(experiment, outcomes))


def draw_suite(out: Path, *, only: Sequence[str], clock: Callable[[], float], seeds: int = 1) -> None:
    """Runs experiments over so many seeds and draws each into ID.svg, without touching the table."""
    from serving.sim.suites import pictures  # imports matplotlib, which the table does not need

    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    for experiment in experiments(only):
        start, by_run = clock(), dict[str, list[PolicyOutcome]]()
        first = experiment.seed
        for _, outcome in over_seeds.outcomes(experiment, range(first, first + seeds)):
            by_run.setdefault(outcome.run.name, []).append(outcome)
        pictures.draw(out / f"{experiment.id}.svg", experiment, by_run)
        console.print(f"{experiment.id}.svg: {len(by_run)} runs, {seeds} seeds, {clock() - start:.1f} s")


def _outcomes(
    only: Sequence[str], clock: Callable[[], float]
) -> Iterator[tuple[FairnessExperiment, list[PolicyOutcome]]]:
    console = Console(stderr=True)
    for experiment in experiments(only):
        start = clock()
        requests = experiment.workload()
        outcomes = [
            run(experiment, policy_run, requests=requests, clock=clock) for policy_run in experiment.runs
        ]
        console.print(
            f"{experiment.id:12} {len(requests):6} requests, {len(outcomes):2} runs, {clock() - start:5.1f} s"
        )
        yield experiment, outcomes


def table_rows(experiment: FairnessExperiment, outcomes: Sequence[PolicyOutcome]) -> list[TableRow]:
    """The metrics of all runs and their clients, with the paper's figures beside them.

    Raises:
      ValueError: a figure of the paper for a policy, client or metric that has no value.
    """
    values: dict[tuple[str, str, str], Any] = {}
    client_rows = [row for outcome in outcomes for row in outcome.client_rows()]
    if len(client_rows) > MAX_CLIENT_ROWS:
        client_rows = []
    for row in (*(outcome.row() for outcome in outcomes), *client_rows):
        policy, client = row.pop("run"), row.pop("client", "")
        values |= {(policy, client, metric): _rounded(value) for metric, value in row.items()}
    papers = dict(_paper_figures(experiment))
    if unknown := papers.keys() - values.keys():
        raise ValueError(f"{experiment.id} has paper figures for {sorted(unknown)}, which have no value")
    return [
        TableRow(experiment.id, *key, value, *_compare(value, papers[key]) if key in papers else ())
        for key, value in values.items()
    ]


def _paper_figures(experiment: FairnessExperiment) -> Iterator[tuple[tuple[str, str, str], float]]:
    """((policy, client, metric), figure of the paper)."""
    for policy, figures in experiment.paper.items():
        for name, figure in figures.items():
            client, _, metric = name.rpartition(" ")
            yield (policy, client, metric), figure


def _rounded(value: Any) -> Any:
    """The same number; a float with five significant digits."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _compare(value: float, paper: float) -> tuple[float, float]:
    """The paper's figure, and the ratio of ours to it."""
    return paper, float(f"{value / paper:.3g}")
