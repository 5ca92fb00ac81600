"""Uptraining a dense checkpoint into MixAttention: does the initialization of the shared K/V matter?

    python -m train.experiments.uptrain --config=configs/uptrain.py --workdir=runs/uptrain --workers=4

trains one dense model per seed, rewires it with several initializations, trains each for the same few steps
on the same batches, and writes results/NAME.csv and NAME.svg. Everything resumes.
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
from train.experiments import plots
from train.experiments.sweep import command, sweep, write_table
from train.experiments.wiring_quality import max_seq_len, table_row, tokenized, train_variant

# Initializations of the shared K/V, and two controls: the dense model unchanged, the new wiring from scratch.
ALL_INITS = (*INITS, "dense", "scratch")


@dataclass
class UptrainExperiment:
    """A dense experiment and its uptraining.

    Attributes:
      inits: of `ALL_INITS`.
      seeds: of weights and data, one dense model each.
      wiring: K/V wiring that the dense model is brought into.
      dense: how the dense model is trained; one stage.
      steps: of uptraining.
      lr_scale: factor on the dense model's peak learning rates during uptraining.
      name: of the result files.
    """

    inits: tuple[str, ...] = ALL_INITS
    seeds: tuple[int, ...] = (0, 1, 2)
    wiring: str = "ma_offset"
    dense: TrainingExperiment = field(default_factory=TrainingExperiment)
    steps: int = 100
    lr_scale: float = 0.5
    name: str = "uptrain"

    def check(self) -> None:
        if unknown := set(self.inits) - set(ALL_INITS):
            raise ValueError(f"inits has {sorted(unknown)[0]!r}; it may have {', '.join(ALL_INITS)}")
        if len(self.dense.train.stages) != 1:
            raise ValueError(f"the dense model has {len(self.dense.train.stages)} stages; it must have one")
        if self.steps < 1 or self.lr_scale <= 0:
            raise ValueError(
                f"uptraining for {self.steps} steps with lr_scale {self.lr_scale} trains nothing"
            )
        dataclasses.replace(self.dense.model, kv_wiring=self.wiring)

    def uptraining(self, init: str, dense: Path) -> TrainingExperiment:
        """Returns the experiment that uptrains with `init`; `dense` is the folder of the dense model."""
        experiment = copy.deepcopy(self.dense)
        stage = experiment.train.stages[0]
        stage.name, stage.steps, stage.tokens, stage.seconds = "uptrain", self.steps, 0, 0.0
        stage.lr_scale *= self.lr_scale
        if init != "dense":
            experiment.model = dataclasses.replace(experiment.model, kv_wiring=self.wiring)
        if init != "scratch":
            experiment.train.init_from = str(dense)
            experiment.train.kv_init = init if init in INITS else "mean"
        return experiment


def uptrain(config: UptrainExperiment, runs: Path, init: str, seed: int) -> dict[str, Any]:
    """Uptrains with one initialization and seed; returns its row of the table."""
    experiment = config.uptraining(init, runs / f"standard_{seed}" / "model")
    # Other batches than the dense model saw, the same for every initialization.
    experiment.train.seed = seed + 1_000_000
    folder = runs / f"{init}_{seed}"
    summary = run.run(experiment, folder)
    first = progress.read(folder / "metrics.csv")[0]
    losses = {f"nats_{step}": seen["validation"] for step, seen in summary["evaluated"].items()}
    row = table_row(experiment.model, max_seq_len(experiment), summary)
    # `first` is the loss of the first batch, before any update. Every initialization gets the same batch.
    return {**row, "first": float(first["loss"]), **losses}


def compare(config: UptrainExperiment, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Runs everything that is not finished, then writes the table and the plot of all finished runs."""
    runs = workdir / "runs"
    local = dataclasses.replace(config, dense=tokenized(config.dense, workdir))
    free = ("inits", "seeds")
    dense = sweep(
        config,
        [("standard", seed) for seed in config.seeds],
        functools.partial(train_variant, local.dense, runs),
        workdir / "dense",
        workers=workers,
        free=free,
    )
    tasks = [(init, seed) for seed in config.seeds for init in config.inits]
    rows = sweep(config, tasks, functools.partial(uptrain, local, runs), workdir, workers=workers, free=free)
    folder.mkdir(parents=True, exist_ok=True)
    dense_nats = [row["nats"] for row in dense]
    write_table(
        folder / f"{config.name}.csv", rows, config=config, dense_nats=[round(n, 4) for n in dense_nats]
    )
    plots.loss_by_init(folder / f"{config.name}.svg", rows, dense_nats, config.wiring)


if __name__ == "__main__":
    command("UptrainExperiment", compare, "runs/uptrain")
