"""The paper's finding in miniature: which wirings recall what lies beyond their windows.

    python -m train.experiments.recall --config=configs/recall.py --workdir=runs/recall --workers=4

trains every variant from every seed on the same stream of rows, each run on one core, and writes
results/recall.csv (accuracy by distance of every run) and results/recall.svg (far accuracy against KV bytes).
A finished run is kept in the workdir: stopped and started again it goes on with the next.

Source: MixAttention (arXiv 2409.15012), section 4; the task and the sizes are ours.
"""

import functools
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixattn import ModelConfig, kv_bytes
from train import mesh, objective
from train.experiments import recall_plot as picture
from train.experiments import recall_task, table
from train.experiments.recall_model import PREVIOUS, Build
from train.experiments.sweep import command, sweep
from train.optimizer import Optimizer, count
from train.step import Compute, Steps

_RECENT = 50  # steps over which training accuracy is averaged before a run may stop early


@dataclass
class Comparison:
    """Variants of one model on one task.

    Attributes:
      variants: names of wirings (`mixattn.PATTERNS`), or "ma+previous": `ma` whose first layer's keys also
        see the token before.
      model: everything but the wiring; its head has one column a value of the task.
      head_size: the head starts as N(0, head_size^2 / d_model).
      stop_at: a run ends early once the mean training accuracy of 50 steps exceeds this.
      buckets: first distances of the columns of the result; the first column starts at 1.
    """

    variants: tuple[str, ...] = ("standard", "ma", "ma_offset")
    seeds: tuple[int, ...] = (0, 1, 2)
    task: recall_task.Task = field(default_factory=recall_task.Task)
    model: ModelConfig = field(default_factory=ModelConfig)
    head_size: float = 1.0
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: int = 900
    batch_size: int = 64
    stop_at: float = 0.998
    evaluation_rows: int = 512
    buckets: tuple[int, ...] = (1, 3, 6, 16, 25, 36)
    name: str = "recall"

    def check(self) -> None:
        if self.model.vocab_size < self.task.vocab_size:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size}, the task has {self.task.vocab_size} tokens"
            )
        for variant in self.variants:
            self.config_of(variant)
        if min(self.steps, self.batch_size, self.evaluation_rows, len(self.seeds)) < 1:
            raise ValueError("steps, batch_size, evaluation_rows and seeds must all be at least one")

    def config_of(self, variant: str) -> ModelConfig:
        """The model of a variant.

        Raises:
          ValueError: no such wiring.
        """
        return ModelConfig(**{**vars(self.model), "kv_wiring": variant.removesuffix(PREVIOUS)})

    def build_of(self, variant: str) -> Build:
        return Build(self.task.values, self.head_size, variant.endswith(PREVIOUS))

    @property
    def reach(self) -> int:
        """Tokens back that a stack of sliding layers alone can relay from: n_layers (W - 1) + 1."""
        return self.model.n_layers * (self.model.window - 1) + 1


def one_run(comparison: Comparison, variant: str, seed: int) -> dict[str, Any]:
    """Trains one variant from one seed; returns accuracy by distance and what it took."""
    config, build = comparison.config_of(variant), comparison.build_of(variant)
    steps = Steps(config, comparison.optimizer, Compute(), mesh.make(mesh.MeshShape()), build=build)
    params = objective.init_params(config, seed, build)
    state, total = steps.start(params), jnp.int32(comparison.steps)
    right: list[float] = []
    loss, began, compiled_s = float("nan"), time.monotonic(), 0.0
    for number in range(comparison.steps):
        batch = recall_task.rows(comparison.task, comparison.batch_size, seed, number)
        batch.pop("distance_BT")
        state, metrics = steps.train(state, jax.device_put(batch, steps.rows), total)
        right.append(float(metrics.right))
        loss = float(metrics.loss)
        if number == 0:
            compiled_s = time.monotonic() - began
        if number % 25 == 24:
            words = f"step {number + 1}, loss {loss:.3f}, right {right[-1]:.3f}"
            print(f"{variant} seed {seed}: {words}", flush=True)
        if len(right) >= _RECENT and np.mean(right[-_RECENT:]) > comparison.stop_at:
            break
    return {
        "wiring": config.wiring,
        "owners": len(config.owners),
        "kv_bytes": kv_bytes(config, comparison.task.length, "float32"),
        "parameters": count(params),
        **by_distance(comparison, config, build, state.params),
        "loss": loss,
        "steps": len(right),
        "seconds": round(time.monotonic() - began - compiled_s, 1),
    }


def by_distance(comparison: Comparison, config: ModelConfig, build: Build, params) -> dict[str, float]:
    """Accuracy of held-out queries, in all and by bucket of distance."""
    batch = recall_task.rows(comparison.task, comparison.evaluation_rows, seed=2**31, number=0)
    predict = jax.jit(
        lambda params, tokens_BT: objective.model_of(config, params, build)(tokens_BT).argmax(-1)
    )
    right_BT = np.asarray(predict(params, batch["tokens_BT"])) == batch["target_BT"]
    distance_BT = batch["distance_BT"]
    edges = [*comparison.buckets, comparison.task.length + 1]
    accuracy = {"all": float(right_BT[distance_BT > 0].mean())}
    for low, high in itertools.pairwise(edges):
        inside_BT = (distance_BT >= low) & (distance_BT < high)
        accuracy[f"{low}-{high - 1}"] = float(right_BT[inside_BT].mean())
    return accuracy


def compare(comparison: Comparison, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Does every run that is not finished yet, then writes the table and the picture of all that are.

    Raises:
      ValueError: the workdir holds runs of another config (other variants and seeds are no other config).
    """
    jobs = [(variant, seed) for seed in comparison.seeds for variant in comparison.variants]
    one = functools.partial(one_run, comparison)
    runs = sweep(comparison, jobs, one, workdir, workers=workers, free=("variants", "seeds"))
    far = next(low for low in comparison.buckets if low >= comparison.reach)
    guess = recall_task.only_recent_values(comparison.task, far)
    folder.mkdir(parents=True, exist_ok=True)
    table.write_csv(folder / f"{comparison.name}.csv", runs, config=comparison, guess_far=round(guess, 4))
    picture.draw(folder / f"{comparison.name}.svg", runs, far, guess, comparison.task.length)


if __name__ == "__main__":
    command("Comparison", compare, "runs/recall")
