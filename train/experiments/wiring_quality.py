"""Language-modelling quality by K/V wiring: validation loss against KV bytes.

    python -m train.experiments.wiring_quality --config=configs/language.py --workdir=runs/language \\
        --workers=4

trains one experiment with every wiring and seed, each run on one core, and writes results/NAME.csv and
NAME.svg. Runs resume from their checkpoints; finished ones are kept in the workdir.
"""

import copy
import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixattn import ModelConfig, kv_bytes
from train import data, run
from train.experiment import TrainingExperiment
from train.experiments import plots
from train.experiments.sweep import command, sweep, write_table
from train.prepare import read_baselines


@dataclass
class WiringExperiment:
    """One experiment with several wirings.

    Attributes:
      variants: names of wirings (`mixattn.PATTERNS`).
      seeds: of weights and data, one run each.
      experiment: everything else.
      name: of the result files.
    """

    variants: tuple[str, ...] = ("standard", "ma_offset")
    seeds: tuple[int, ...] = (0, 1, 2)
    experiment: TrainingExperiment = field(default_factory=TrainingExperiment)
    name: str = "language"

    def check(self) -> None:
        for variant in self.variants:
            dataclasses.replace(self.experiment.model, kv_wiring=variant)
        if not self.seeds:
            raise ValueError("seeds is empty; there is nothing to run")


def tokenized(experiment: TrainingExperiment, workdir: Path) -> TrainingExperiment:
    """Tokenizes the corpus into the workdir; returns a copy of the experiment that reads it there."""
    data.prepare(experiment.data, workdir / "data", experiment.model.vocab_size, print)
    experiment = copy.deepcopy(experiment)
    experiment.data.path = str(workdir / "data")
    return experiment


def train_variant(experiment: TrainingExperiment, folder: Path, variant: str, seed: int) -> dict[str, Any]:
    """Trains one wiring from one seed in its own subfolder; returns its row of the table."""
    experiment = copy.deepcopy(experiment)
    experiment.model = dataclasses.replace(experiment.model, kv_wiring=variant)
    experiment.train.seed = seed
    summary = run.run(experiment, folder / f"{variant}_{seed}")
    return table_row(experiment.model, max_seq_len(experiment), summary)


def max_seq_len(experiment: TrainingExperiment) -> int:
    """Longest row of any stage, in tokens."""
    return max(stage.seq_len for stage in experiment.train.stages)


def table_row(config: ModelConfig, tokens: int, summary: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's row of the table. `kv_bytes` is for one row of `tokens` tokens in bfloat16."""
    return {
        "wiring": config.wiring,
        "owners": len(config.owners),
        "kv_bytes": kv_bytes(config, tokens),
        "parameters": summary["parameters"],
        "nats": summary["validation_nats"],
        "bits_per_byte": summary["validation_bits_per_byte"],
        "steps": sum(summary["steps"]),
        "tokens": summary["tokens"],
        "seconds": round(summary["train_seconds"], 1),
    }


def compare(config: WiringExperiment, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Runs everything that is not finished, then writes the table and the plot of all finished runs."""
    tasks = [(variant, seed) for seed in config.seeds for variant in config.variants]
    experiment = tokenized(config.experiment, workdir)
    train = functools.partial(train_variant, experiment, workdir / "runs")
    rows = sweep(config, tasks, train, workdir, workers=workers, free=("variants", "seeds"))
    folder.mkdir(parents=True, exist_ok=True)
    baselines = read_baselines(workdir / "runs" / "{variant}_{seed}".format(**rows[0]))
    write_table(folder / f"{config.name}.csv", rows, config=config, baselines=baselines)
    plots.loss_by_kv_bytes(folder / f"{config.name}.svg", rows, max_seq_len(config.experiment), baselines)


if __name__ == "__main__":
    command("WiringExperiment", compare, "runs/language")
