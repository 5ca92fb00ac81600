"""Key-value recall beyond the sliding windows, by K/V wiring: the paper's finding in miniature.

    python -m train.experiments.recall --config=configs/recall.py --workdir=runs/recall --workers=4

trains every variant from every seed on the same stream of rows, each run on one core, and writes
results/recall.csv (accuracy by distance of every run) and results/recall.svg (far accuracy against KV bytes).
Finished runs are kept in the workdir; the same command again starts with the next one.

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
from train.experiments import recall_plot, recall_task
from train.experiments.recall_model import PREVIOUS, RecallModelFactory
from train.experiments.sweep import command, sweep, write_table
from train.optimizer import OptimizerConfig, count_params
from train.step import CompiledStage, ComputeConfig

_RECENT = 50  # steps over which training accuracy is averaged before a run may stop early


@dataclass
class RecallExperiment:
    """Variants of one model on one task.

    Attributes:
      variants: names of wirings (`mixattn.PATTERNS`), or "ma+previous": `ma` whose first layer's keys also
        see the previous token.
      model: everything but the wiring; its head has one column per value of the task.
      head_size: the head is initialized as N(0, head_size^2 / d_model).
      stop_at: a run ends early once the mean training accuracy of 50 steps exceeds this.
      evaluation_rows: held-out rows for the accuracy by distance.
      buckets: first distance of each accuracy column of the result.
      name: of the result files.
    """

    variants: tuple[str, ...] = ("standard", "ma", "ma_offset")
    seeds: tuple[int, ...] = (0, 1, 2)
    task: recall_task.RecallTask = field(default_factory=recall_task.RecallTask)
    model: ModelConfig = field(default_factory=ModelConfig)
    head_size: float = 1.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
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
        """Returns the model config of a variant.

        Raises:
          ValueError: there is no such wiring.
        """
        return ModelConfig(**{**vars(self.model), "kv_wiring": variant.removesuffix(PREVIOUS)})

    def build_of(self, variant: str) -> RecallModelFactory:
        """Returns what builds the model of a variant."""
        return RecallModelFactory(self.task.values, self.head_size, variant.endswith(PREVIOUS))

    @property
    def reach(self) -> int:
        """Distance that a stack of sliding layers alone can relay over, in tokens: n_layers (W - 1) + 1."""
        return self.model.n_layers * (self.model.window - 1) + 1


def train_variant(comparison: RecallExperiment, variant: str, seed: int) -> dict[str, Any]:
    """Trains one variant from one seed; returns its row of the table."""
    config, build = comparison.config_of(variant), comparison.build_of(variant)
    compiled = CompiledStage(
        config, comparison.optimizer, ComputeConfig(), mesh.make(mesh.MeshShape()), build=build
    )
    params = objective.init_params(config, seed, build)
    state, total = compiled.init_state(params), jnp.int32(comparison.steps)
    accuracies: list[float] = []
    loss, began, compiled_s = float("nan"), time.monotonic(), 0.0
    for number in range(comparison.steps):
        batch = recall_task.make_batch(comparison.task, comparison.batch_size, seed, number)
        batch.pop("distance_BT")
        state, metrics = compiled.train(state, compiled.place(batch), total)
        accuracies.append(float(metrics.accuracy))
        loss = float(metrics.loss)
        if number == 0:
            compiled_s = time.monotonic() - began
        if number % 25 == 24:
            figures = f"step {number + 1}, loss {loss:.3f}, accuracy {accuracies[-1]:.3f}"
            print(f"{variant} seed {seed}: {figures}", flush=True)
        if len(accuracies) >= _RECENT and np.mean(accuracies[-_RECENT:]) > comparison.stop_at:
            break
    return {
        "wiring": config.wiring,
        "owners": len(config.owners),
        "kv_bytes": kv_bytes(config, comparison.task.length, "float32"),
        "parameters": count_params(params),
        **accuracy_by_distance(comparison, config, build, state.params),
        "loss": loss,
        "steps": len(accuracies),
        "seconds": round(time.monotonic() - began - compiled_s, 1),
    }


def accuracy_by_distance(
    comparison: RecallExperiment, config: ModelConfig, build: RecallModelFactory, params: objective.Params
) -> dict[str, float]:
    """Returns the accuracy on held-out queries, of all and by bucket of distance."""
    batch = recall_task.make_batch(comparison.task, comparison.evaluation_rows, seed=2**31, number=0)
    predict = jax.jit(
        lambda params, tokens_BT: objective.model_of(config, params, build)(tokens_BT).argmax(-1)
    )
    correct_BT = np.asarray(predict(params, batch["tokens_BT"])) == batch["target_BT"]
    distance_BT = batch["distance_BT"]
    edges = [*comparison.buckets, comparison.task.length + 1]
    accuracy = {"all": float(correct_BT[distance_BT > 0].mean())}
    for low, high in itertools.pairwise(edges):
        inside_BT = (distance_BT >= low) & (distance_BT < high)
        accuracy[f"{low}-{high - 1}"] = float(correct_BT[inside_BT].mean())
    return accuracy


def compare(comparison: RecallExperiment, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Runs everything that is not finished, then writes the table and the plot of all finished runs.

    Raises:
      ValueError: the workdir holds runs of another config; variants and seeds may differ.
    """
    tasks = [(variant, seed) for seed in comparison.seeds for variant in comparison.variants]
    train = functools.partial(train_variant, comparison)
    rows = sweep(comparison, tasks, train, workdir, workers=workers, free=("variants", "seeds"))
    far = next(low for low in comparison.buckets if low >= comparison.reach)
    guess = recall_task.guess_accuracy(comparison.task, far)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / f"{comparison.name}.csv", rows, config=comparison, guess_far=round(guess, 4))
    recall_plot.draw(folder / f"{comparison.name}.svg", rows, far, guess, comparison.task.length)


if __name__ == "__main__":
    command("RecallExperiment", compare, "runs/recall")
