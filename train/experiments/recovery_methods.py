"""Ways to recover one rewired pre-trained model, compared by held-out nats, tokens and seconds.

    python -m train.experiments.recovery_methods --config=configs/smollm2_mixattention.py:methods \\
        --workdir=DIR

The config's last wiring is the one recovered; results/NAME.csv has a row per method. A finished method is
kept in the workdir and not repeated.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

from train.experiments import loss
from train.experiments.distil import distil
from train.experiments.pretrained_setup import Material, PretrainedExperiment, rewired
from train.experiments.recover import Strength, recover
from train.experiments.sweep import command, sweep, write_table

STEP_ROWS = 2


class RecoveryMethod(NamedTuple):
    """Closed-form fits on `rows` rows (0 = none), then `steps` steps of distillation.

    Attributes:
      strength: of the fits, as a factor on the config's.
      learning_rate: of the distillation, attention's parameters only.
    """

    rows: int = 0
    strength: float = 1.0
    steps: int = 0
    learning_rate: float = 5e-4


METHODS = {
    "none": RecoveryMethod(),
    "distil 16 steps": RecoveryMethod(steps=16),
    "fit 8 rows": RecoveryMethod(8),
    "fit 32 rows": RecoveryMethod(32),
    "fit 64 rows": RecoveryMethod(64),
    "fit 32 rows, 10 x strength": RecoveryMethod(32, strength=10),
    "fit 32 rows, distil 16 steps": RecoveryMethod(32, steps=16, learning_rate=1e-4),
}


def run_method(config: PretrainedExperiment, workdir: Path, name: str, seed: int) -> dict[str, Any]:
    """Recovers the wiring with one method; returns its row."""
    del seed
    method = METHODS[name]
    material = Material(dataclasses.replace(config, fit_rows=method.rows or 1), workdir / f"{method.rows}")
    (workdir / f"{method.rows}").mkdir(parents=True, exist_ok=True)
    model = rewired(config, material.model(), config.wirings[-1])
    seconds = 0.0
    if method.rows:
        strength = Strength(
            config.attention_strength * method.strength, config.down_strength * method.strength
        )
        streams, start = material.streams, time.perf_counter()
        recover(model, material.original, streams, query_rows=config.query_rows, strength=strength)
        seconds += time.perf_counter() - start
    if method.steps:
        start = time.perf_counter()
        model = distil(
            model,
            material.original,
            material.rows("train", method.steps * STEP_ROWS),
            steps=method.steps,
            learning_rate=method.learning_rate,
            batch=STEP_ROWS,
            report=lambda step, nats: print(f"{name}: step {step}, {nats:.3f} nats", flush=True),
        )
        seconds += time.perf_counter() - start
    tokens = (method.rows + method.steps * STEP_ROWS) * config.row_tok
    return {"nats": loss.nats(model, material.held_out), "tokens": tokens, "seconds": seconds}


def compare(config: PretrainedExperiment, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Runs the methods that are not finished, and writes the table after each."""
    for count in range(1, len(METHODS) + 1):
        tasks = [(name, 0) for name in list(METHODS)[:count]]
        run = functools.partial(run_method, config, workdir)
        rows = sweep(config, tasks, run, workdir, workers=workers, free=("name",))
        found = [{"method": row.pop("variant"), **row} for row in rows]
        write_table(folder / f"{config.name}.csv", found, config=config)


if __name__ == "__main__":
    command("PretrainedExperiment", compare, "runs/recovery_methods")
