"""A model trained in minutes on a task with heavy hitters, and what every eviction policy does to it.

    python -m train.experiments.zipf_recall --config=configs/zipf_recall.py --workdir=runs/zipf_recall

Trains until the task is learned, keeps the weights in the workdir (the same command again only measures),
reads rows through an evicting cache, a prompt at once and the rest token by token, and writes
results/zipf_recall.csv: for each policy the share of questions behind the prompt that are answered rightly,
with 95 % bootstrap intervals over rows and the paired difference from the full cache, for all keys and for
the most asked ones. The task counts as evidence only if it is learned and if forgetting at random hurts:
full >= 0.95, and random at 20 % at least 0.2 below it; the last line says whether that holds.

Axes: B rows, T tokens, S tokens behind the prompt.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from mixattn import ModelConfig, Transformer
from mixattn.cache import CacheMaker, Ring, RowCache
from mixattn.evals.longcontext import statistics
from mixattn.evals.longcontext.checkpoint import keep_of
from mixattn.evals.longcontext.policies import FULL, KeepPolicy, grid
from mixattn.generation import cache_kind, read_prompts, rounded
from mixattn.tools import cli, files
from pallas_kernels import results
from train import mesh, objective, recipe
from train.experiments.recall_model import RecallModelFactory
from train.experiments.zipf_task import ZipfTask, make_batch
from train.optimizer import OptimizerConfig
from train.step import CompiledStage, ComputeConfig

FLAGS = flags.FLAGS
_RECENT = 20  # steps over which training accuracy is averaged before training may stop early
HELD_OUT = 2**31  # stream of the rows that are measured
LEARNED, HURT, HURT_BY = 0.95, "random 0.2", 0.2  # what makes the task evidence
OFTEN = 4  # ranks of the most asked keys


@dataclass
class ZipfExperiment:
    """A model, its task, and budgets.

    Attributes:
      model: its head has one column per value of the task. head_size: see `RecallModelFactory`.
      stop_at: training ends once the mean accuracy of 20 steps exceeds this.
      prompt: tokens of a row that are read at once, before the first cut.
      rows: measured.
      scorers, budgets, sinks, recent: see `mixattn.evals.longcontext.policies.grid`.
      window: queries that SnapKV observes; its own 32 are more than a fifth of the prompt.
      name: of the result file.
    """

    task: ZipfTask = field(default_factory=ZipfTask)
    model: ModelConfig = field(default_factory=ModelConfig)
    head_size: float = 0.5
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 400
    batch_size: int = 32
    stop_at: float = 0.995
    seed: int = 0
    prompt: int = 128
    rows: int = 128
    scorers: tuple[str, ...] = ("h2o", "streaming", "random")
    budgets: tuple[str, ...] = ("0.1", "0.2", "0.5")
    sinks: int = 4
    recent: float = 0.5
    window: int = 8
    name: str = "zipf_recall"

    def check(self) -> None:
        self.task.check()
        if self.model.vocab_size < self.task.vocab_size:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size}, the task has {self.task.vocab_size} tokens"
            )
        if not self.task.told <= self.prompt < self.task.length:
            raise ValueError(
                f"prompt={self.prompt} must hold the definitions ({self.task.told} tokens) and leave "
                f"something of rows of {self.task.length}"
            )
        if min(self.steps, self.batch_size, self.rows) < 1:
            raise ValueError("steps, batch_size and rows must all be at least one")
        for policy in self.policies:
            keep_of(policy)

    @property
    def policies(self) -> list[KeepPolicy]:
        return grid(self.scorers, self.budgets, sinks=self.sinks, recent=self.recent, window=self.window)

    @property
    def build(self) -> RecallModelFactory:
        return RecallModelFactory(self.task.values, self.head_size)


class Trained:
    """Weights and how they came about.

    Attributes:
      params: by path. facts: steps, and seconds of CPU time with compilation.
    """

    def __init__(self, params: objective.Params, facts: dict[str, Any]):
        self.params, self.facts = params, facts


def train(experiment: ZipfExperiment) -> Trained:
    """Trains until the task is learned, or for all steps."""
    compiled = CompiledStage(
        experiment.model,
        experiment.optimizer,
        ComputeConfig(),
        mesh.make(mesh.MeshShape()),
        build=experiment.build,
    )
    params = objective.init_params(experiment.model, experiment.seed, experiment.build)
    state, total = compiled.init_state(params), jnp.int32(experiment.steps)
    accuracies: list[float] = []
    began = time.process_time()
    for number in range(experiment.steps):
        batch = make_batch(experiment.task, experiment.batch_size, experiment.seed, number)
        batch.pop("rank_BT")
        state, metrics = compiled.train(state, compiled.place(batch), total)
        accuracies.append(float(metrics.accuracy))
        if number % 20 == 19:
            print(
                f"step {number + 1} of at most {experiment.steps}: loss {float(metrics.loss):.3f}, "
                f"accuracy {accuracies[-1]:.3f}, {time.process_time() - began:.0f} s of CPU time",
                flush=True,
            )
        if len(accuracies) >= _RECENT and np.mean(accuracies[-_RECENT:]) > experiment.stop_at:
            break
    facts = {"steps": len(accuracies), "cpu_s": round(time.process_time() - began, 1)}
    return Trained(state.params, facts)


def kept(experiment: ZipfExperiment, workdir: Path) -> Trained:
    """The trained weights of the workdir; trains if there are none.

    Raises:
      ValueError: the workdir holds the weights of another config.
    """
    decides = {
        name: value
        for name, value in recipe.as_json(experiment).items()
        if name in ("task", "model", "head_size", "optimizer", "steps", "batch_size", "stop_at", "seed")
    }
    about, weights = workdir / "run.json", workdir / "weights.npz"
    if about.exists():
        known = files.read_json(about)
        if known["config"] != decides:
            raise ValueError(f"{workdir} holds the weights of another config; name another --workdir")
        with np.load(weights, allow_pickle=False) as arrays:
            return Trained({name: jnp.asarray(arrays[name]) for name in arrays}, known["facts"])
    workdir.mkdir(parents=True, exist_ok=True)
    trained = train(experiment)
    with files.whole(weights) as draft, draft.open("wb") as file:
        held = {name: np.asarray(value) for name, value in trained.params.items()}
        np.savez(file, **held)  # type: ignore[arg-type]
    files.write_json(about, {"config": decides, "facts": trained.facts})
    return trained


@functools.partial(jax.jit, static_argnames=("graphdef", "cache", "prompt"))
def predictions(
    graphdef: nnx.GraphDef, params: nnx.State, tokens_BT: jax.Array, *, cache: CacheMaker, prompt: int
) -> jax.Array:
    """value_BS predicted at each token behind the prompt, which is read at once."""
    model = nnx.merge(graphdef, params)
    B, T = tokens_BT.shape
    count_B = jnp.full(B, prompt, jnp.int32)
    _, held = read_prompts(model, tokens_BT[:, :prompt], count_B, cache=cache, capacity=rounded(T))

    def step(held: RowCache, token_B: jax.Array) -> tuple[RowCache, jax.Array]:
        out = model.forward(token_B[:, None], cache=held)
        return cast(RowCache, out.cache), jnp.argmax(model.head(out.hidden_BTD[:, 0]), axis=-1)

    _, value_SB = jax.lax.scan(step, held.with_counts(None), tokens_BT[:, prompt:].T)
    return value_SB.T


def measure(experiment: ZipfExperiment, model: Transformer) -> Iterator[dict[str, Any]]:
    """A row of the table for each policy, the full cache first."""
    batch = make_batch(experiment.task, experiment.rows, HELD_OUT, 0)
    tokens_BT, start = batch["tokens_BT"], experiment.prompt
    rank_BS, target_BS = batch["rank_BT"][:, start:], batch["target_BT"][:, start:]
    graphdef, params = nnx.split(model)
    full: dict[str, np.ndarray] = {}
    for policy in experiment.policies:
        lengths = [start] * len(tokens_BT)
        made = cache_kind(Ring, keep_of(policy), model.config, lengths, tokens_BT.shape[1] - start)
        value_BS = np.asarray(predictions(graphdef, params, jnp.asarray(tokens_BT), cache=made, prompt=start))
        row: dict[str, Any] = {"policy": policy.name, "rows": len(tokens_BT)}
        for name, asked_BS in (("all", rank_BS > 0), ("often", (rank_BS > 0) & (rank_BS <= OFTEN))):
            some_B = asked_BS.any(axis=1)
            right_B = ((value_BS == target_BS) & asked_BS).sum(1)[some_B] / asked_BS.sum(1)[some_B]
            row |= _figures(name, right_B, full.setdefault(name, right_B), policy)
        yield row


def _figures(name: str, right_B: np.ndarray, full_B: np.ndarray, policy: KeepPolicy) -> dict[str, Any]:
    own = statistics.interval(list(right_B))
    row = {name: own.mean, f"{name}_low": own.low, f"{name}_high": own.high, f"{name}_median": own.median}
    if policy.scorer != FULL:
        paired = statistics.interval(list(right_B - full_B))
        row |= {f"{name}_minus_full": paired.mean}
        row |= {f"{name}_minus_full_low": paired.low, f"{name}_minus_full_high": paired.high}
    return row


def verdict(rows: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether the task is evidence, and why."""
    by_name = {row["policy"]: row["all"] for row in rows}
    if HURT not in by_name:
        return False, f"not decided: {HURT} was not measured"
    full, hurt = by_name[FULL], by_name[HURT]
    holds = bool(full >= LEARNED and full - hurt >= HURT_BY)
    said = f"full {full:.3f} (at least {LEARNED}), {HURT} {hurt:.3f} (at least {HURT_BY} below)"
    return holds, f"{'accepted' if holds else 'not accepted'}: {said}"


def main() -> None:
    """Trains or fetches the model, measures, and writes the table."""
    experiment = cli.config()
    if type(experiment).__name__ != "ZipfExperiment":
        raise ValueError(f"--config holds {type(experiment).__name__}, not ZipfExperiment")
    experiment.check()
    trained = kept(experiment, Path(FLAGS.workdir))
    model = objective.model_of(experiment.model, trained.params, experiment.build)
    rows = []
    for row in measure(experiment, model):
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(f"{row['policy']:24} {row['all']:.3f}   most asked {row['often']:.3f}", flush=True)
    _, said = verdict(rows)
    print(said)
    facts = {f"trained_{name}": value for name, value in trained.facts.items()}
    command = "python -m train.experiments.zipf_recall"
    path = str(Path(FLAGS.results) / f"{experiment.name}.csv")
    results.write_csv(path, rows, command=command, task=str(vars(experiment.task)), verdict=said, **facts)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", "runs/zipf_recall", "Folder of the weights; what is there is not trained.")
    flags.DEFINE_string("results", "results", "Folder for the table.")
    cli.run(main)
