"""From a dense checkpoint into MixAttention: does it matter what the shared K/V start from?

    python -m train.experiments.uptrain --config=configs/uptrain.py --workdir=runs/uptrain --workers=4

trains one dense model a seed, brings it into another wiring from several starts, goes on training each for
the same few steps on the same batches, and writes results/NAME.csv and NAME.svg. Everything is resumable.
"""

import copy
import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixattn.uptrain import INITS
from train import progress, run
from train.experiment import TrainingExperiment
from train.experiments import plots, table
from train.experiments.sweep import command, sweep
from train.experiments.wiring_quality import longest, one_run, row, tokenized

# Beside what K/V may start from: the dense model left as it is, and the new wiring from nothing.
STARTS = (*INITS, "dense", "scratch")


@dataclass
class Uptraining:
    """A dense experiment, and what comes after it.

    Attributes:
      starts: of `STARTS`.
      wiring: what the dense model is brought into.
      dense: how the dense model is trained; one stage.
      steps: of going on.
      rate: of going on, as a factor on the dense model's peak rates.
    """

    starts: tuple[str, ...] = STARTS
    seeds: tuple[int, ...] = (0, 1, 2)
    wiring: str = "ma_offset"
    dense: TrainingExperiment = field(default_factory=TrainingExperiment)
    steps: int = 100
    rate: float = 0.5
    name: str = "uptrain"

    def check(self) -> None:
        if unknown := set(self.starts) - set(STARTS):
            raise ValueError(f"starts has {sorted(unknown)[0]!r}; it may have {', '.join(STARTS)}")
        if len(self.dense.train.stages) != 1:
            raise ValueError(f"the dense model has {len(self.dense.train.stages)} stages; it must have one")
        if self.steps < 1 or self.rate <= 0:
            raise ValueError(f"going on for {self.steps} steps at a rate of {self.rate} trains nothing")
        dataclasses.replace(self.dense.model, kv_wiring=self.wiring)

    def after(self, start: str, dense: Path) -> TrainingExperiment:
        """The experiment that goes on from `start`; `dense` is the dense model's folder."""
        experiment = copy.deepcopy(self.dense)
        stage = experiment.train.stages[0]
        stage.name, stage.steps, stage.tokens, stage.seconds = "uptrain", self.steps, 0, 0.0
        stage.rate *= self.rate
        if start != "dense":
            experiment.model = dataclasses.replace(experiment.model, kv_wiring=self.wiring)
        if start != "scratch":
            experiment.train.start = str(dense)
            experiment.train.start_kv = start if start in INITS else "mean"
        return experiment


def go_on(config: Uptraining, runs: Path, start: str, seed: int) -> dict[str, Any]:
    """Trains on from one start and seed."""
    experiment = config.after(start, runs / f"standard_{seed}" / "model")
    # Other batches than the dense model saw, the same for every start.
    experiment.train.seed = seed + 1_000_000
    folder = runs / f"{start}_{seed}"
    summary = run.run(experiment, folder)
    first = progress.read(folder / "metrics.csv")[0]
    losses = {f"nats_{step}": seen["validation"] for step, seen in summary["evaluated"].items()}
    # Before anything is learnt: the loss of the first batch, which is the same for every start.
    return {**row(experiment.model, longest(experiment), summary), "first": float(first["loss"]), **losses}


def compare(config: Uptraining, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Does every run that is not finished yet, then writes the table and the picture of all that are."""
    runs = workdir / "runs"
    local = dataclasses.replace(config, dense=tokenized(config.dense, workdir))
    free = ("starts", "seeds")
    one = functools.partial(one_run, local.dense, runs)
    dense = sweep(
        config,
        [("standard", seed) for seed in config.seeds],
        one,
        workdir / "dense",
        workers=workers,
        free=free,
    )
    jobs = [(start, seed) for seed in config.seeds for start in config.starts]
    rows = sweep(config, jobs, functools.partial(go_on, local, runs), workdir, workers=workers, free=free)
    folder.mkdir(parents=True, exist_ok=True)
    before = [one["nats"] for one in dense]
    table.write_csv(
        folder / f"{config.name}.csv", rows, config=config, dense_nats=[round(nats, 4) for nats in before]
    )
    plots.of_starts(folder / f"{config.name}.svg", rows, sum(before) / len(before), config.wiring)


if __name__ == "__main__":
    command("Uptraining", compare, "runs/uptrain")
