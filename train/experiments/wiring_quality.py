"""What a wiring of K/V costs in language modelling: validation loss against KV bytes.

    python -m train.experiments.wiring_quality --config=configs/language.py --workdir=runs/language \
        --workers=4

trains one experiment under every wiring and seed, each run on one core and resumable from its checkpoints,
and writes results/NAME.csv and NAME.svg. Finished runs are kept in the workdir.
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
from train.experiments import plots, table
from train.experiments.sweep import command, sweep
from train.prepare import read_bars


@dataclass
class Wirings:
    """One experiment under several wirings.

    Attributes:
      variants: names of wirings (`mixattn.PATTERNS`).
      experiment: everything else; its seeds of weights and of data are each run's own.
    """

    variants: tuple[str, ...] = ("standard", "ma_offset")
    seeds: tuple[int, ...] = (0, 1, 2)
    experiment: TrainingExperiment = field(default_factory=TrainingExperiment)
    name: str = "language"

    def check(self) -> None:
        for variant in self.variants:
            dataclasses.replace(self.experiment.model, kv_wiring=variant)
        if not self.seeds:
            raise ValueError("seeds is empty; there is nothing to do")


def tokenized(experiment: TrainingExperiment, workdir: Path) -> TrainingExperiment:
    """A copy of the experiment that reads its tokens from the workdir, where they are written first."""
    data.prepare(experiment.data, workdir / "data", experiment.model.vocab_size, print)
    experiment = copy.deepcopy(experiment)
    experiment.data.path = str(workdir / "data")
    return experiment


def one_run(experiment: TrainingExperiment, folder: Path, variant: str, seed: int) -> dict[str, Any]:
    """Trains one wiring from one seed in a folder of its own."""
    experiment = copy.deepcopy(experiment)
    experiment.model = dataclasses.replace(experiment.model, kv_wiring=variant)
    experiment.train.seed = seed
    return row(experiment.model, longest(experiment), run.run(experiment, folder / f"{variant}_{seed}"))


def longest(experiment: TrainingExperiment) -> int:
    """Tokens of the longest rows."""
    return max(stage.seq_len for stage in experiment.train.stages)


def row(config: ModelConfig, tokens: int, summary: dict[str, Any]) -> dict[str, Any]:
    """What a run's summary says of a wiring. `kv_bytes` are those of one row of `tokens`, in bfloat16."""
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


def compare(config: Wirings, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Does every run that is not finished yet, then writes the table and the picture of all that are."""
    jobs = [(variant, seed) for seed in config.seeds for variant in config.variants]
    experiment = tokenized(config.experiment, workdir)
    one = functools.partial(one_run, experiment, workdir / "runs")
    rows = sweep(config, jobs, one, workdir, workers=workers, free=("variants", "seeds"))
    folder.mkdir(parents=True, exist_ok=True)
    bars = read_bars(workdir / "runs" / "{variant}_{seed}".format(**rows[0]))
    table.write_csv(folder / f"{config.name}.csv", rows, config=config, bars=bars)
    plots.against_bytes(folder / f"{config.name}.svg", rows, longest(config.experiment), bars)


if __name__ == "__main__":
    command("Wirings", compare, "runs/language")
