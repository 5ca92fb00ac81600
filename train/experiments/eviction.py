"""What an evicting cache costs, experiment by experiment, on a checkpoint: sections of H2O's evaluation.

    python -m train.experiments.eviction --config=configs/eviction.py --workdir=runs/eviction
    python -m train.experiments.eviction --config=configs/eviction.py:fast --only=ablations

A section is a grid of the long-context suite. Each has its folder in the workdir, every answer is a line
there, and the same command again goes on where it was stopped. Writes results/eviction.csv: a row for each
section, task, length and policy with 95 % intervals, medians and the paired difference from the full cache.

Source: arXiv 2306.14048, section 5, with the controls and tasks of the suite.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals.longcontext import statistics
from mixattn.evals.longcontext.checkpoint import CheckpointModel, keep_of
from mixattn.evals.longcontext.journal import AnswerLog
from mixattn.evals.longcontext.suite import SuiteGrid, run
from mixattn.tools import cli
from mixattn.tools.progress import ProgressLines
from pallas_kernels import results

FLAGS = flags.FLAGS


@dataclass
class EvictionExperiment:
    """Sections of one table.

    Attributes:
      checkpoint: a directory. sections: name -> grid of the suite.
      scored: tokens of a text that are scored; 0 = a quarter.
      name: of the result file.
    """

    checkpoint: str = "models/smollm2"
    sections: Mapping[str, SuiteGrid] = field(default_factory=dict)
    scored: int = 0
    name: str = "eviction"


def measure(experiment: EvictionExperiment, workdir: Path, only: list[str]) -> list[dict[str, Any]]:
    """Runs what is missing; returns the rows of the asked sections.

    Raises:
      ValueError: there is no such section, or a budget or a length does not fit.
    """
    asked = only or list(experiment.sections)
    if unknown := sorted(set(asked) - set(experiment.sections)):
        raise ValueError(f"--only names {unknown[0]}; there are {', '.join(experiment.sections)}")
    for name in asked:
        for policy in experiment.sections[name].policies:
            keep_of(policy)
    model = CheckpointModel(Path(experiment.checkpoint), experiment.scored)
    rows = []
    for name in asked:
        log = AnswerLog(workdir / name, _settings(experiment, experiment.sections[name]))
        _run(name, experiment.sections[name], model, log)
        rows += [{"section": name} | row for row in statistics.table(list(log.answers.values()))]
    return rows


def _run(name: str, grid: SuiteGrid, model: CheckpointModel, log: AnswerLog) -> None:
    with ProgressLines() as lines:
        line, done = lines.add(grid.size, f"{name}: 0 of {grid.size} answers"), 0

        def on_batch(more: int, doing: str) -> None:
            nonlocal done
            done += more
            line.update(done, f"{name}: {done} of {grid.size} answers; {doing}")

        run(grid, model, log, on_batch)


def _settings(experiment: EvictionExperiment, grid: SuiteGrid) -> dict[str, Any]:
    """What gives the answers of a section their meaning, as the policies' names do not tell it."""
    options = sorted({str(dict(policy.options)) for policy in grid.policies if policy.options})
    about = {"checkpoint": experiment.checkpoint, "seed": grid.seed, "scored": experiment.scored}
    return about | {"options": options}


def main() -> None:
    """Runs the sections and writes the table."""
    experiment = cli.config()
    if type(experiment).__name__ != "EvictionExperiment":
        raise ValueError(f"--config holds {type(experiment).__name__}, not EvictionExperiment")
    rows = measure(experiment, Path(FLAGS.workdir), FLAGS.only)
    path = Path(FLAGS.results) / f"{experiment.name}.csv"
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    command = "python -m train.experiments.eviction"
    results.write_csv(str(path), rounded, command=command, checkpoint=experiment.checkpoint)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string(
        "workdir", "runs/eviction", "Folder of the answers; what is there is not asked again."
    )
    flags.DEFINE_string("results", "results", "Folder for the table.")
    flags.DEFINE_list("only", [], "Sections to run; all if none is named.")
    cli.run(main)
