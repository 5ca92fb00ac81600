"""The training run: stages, steps, evaluations, checkpoints; stopped at any point it goes on where it was.

    prepare data -> for each stage: [step -> metrics -> evaluate? -> checkpoint?] -> full validation -> export

The loop stays one step ahead of the device: it reads the metrics of step n after step n + 1 was sent off.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mixattn import ModelConfig
from mixattn.uptrain import INITS
from train import data as pipeline
from train import flops, tokens
from train.checkpoint import Checkpoints
from train.mesh import MeshShape
from train.optimizer import Optimizer
from train.progress import Board, Line, Metrics, Row
from train.step import Compute, State, Steps

_PROBE_STEPS = 5
_PROFILED = (10, 15)  # --profile traces from the one to the other, counted from where a run (re)starts


@dataclass
class Stage:
    """One stretch of training. Exactly one of `steps`, `tokens` and `seconds` says how long it is.

    Attributes:
      seconds: as many steps as fit that time, by the fastest of five steps timed first, but no fewer than
        `least_steps` and no more than `most_steps`. The choice is kept when the run goes on later.
      batch_size: rows a step, over all micro-batches and devices.
      rope_theta: 0 keeps the model's.
      trains: "all" parameters, or only those of "attention".
      path: a corpus of its own ("" = `data.path`).
      rate: factor on the optimizer's peak rates.
    """

    name: str = "pretrain"
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    least_steps: int = 1
    most_steps: int = 1_000_000
    batch_size: int = 4
    seq_len: int = 256
    rope_theta: float = 0.0
    trains: str = "all"
    path: str = ""
    rate: float = 1.0

    def check(self) -> None:
        given = [n for n in ("steps", "tokens", "seconds") if getattr(self, n) > 0]
        if len(given) != 1:
            raise ValueError(
                f"stage {self.name!r} gives {given or 'none'} of steps, tokens, seconds; give exactly one"
            )
        if min(self.batch_size, self.seq_len) < 1:
            raise ValueError(
                f"stage {self.name!r} has batches of {self.batch_size} rows of {self.seq_len} tokens"
            )
        if not 1 <= self.least_steps <= self.most_steps:
            raise ValueError(
                f"stage {self.name!r}: least_steps {self.least_steps} > most_steps {self.most_steps}"
            )
        if self.trains not in ("all", "attention"):
            raise ValueError(f"stage {self.name!r} trains {self.trains!r}; it must be 'all' or 'attention'")


@dataclass
class Train:
    """What is done with data and model.

    Attributes:
      evaluate_every: steps between validations (0 = only at the end).
      evaluate_windows: how many windows these take (0 = all there are).
      gate: the n-gram entropy that the final validation loss must beat: "unigram", "bigram", "trigram" or
        "none".
      start: folder of an exported model to start from, brought into this model's wiring ("" = from nothing);
        text is then cut by that model's tokenizer.
      start_kv: what its new groups' K/V start from (`mixattn.uptrain`): "mean", "owner" or "random".
    """

    seed: int = 0
    start: str = ""
    start_kv: str = "mean"
    stages: list[Stage] = field(default_factory=lambda: [Stage(steps=100)])
    optimizer: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    evaluate_every: int = 100
    evaluate_windows: int = 64
    gate: str = "none"

    def check(self) -> None:
        if not self.stages:
            raise ValueError("train.stages is empty; there is nothing to do")
        for stage in self.stages:
            stage.check()
            if stage.batch_size % self.compute.accumulate:
                raise ValueError(
                    f"stage {stage.name!r}: {stage.batch_size} rows do not split into"
                    f" {self.compute.accumulate} micro-batches"
                )
        if self.start_kv not in INITS:
            raise ValueError(f"train.start_kv is {self.start_kv!r}; it must be one of {', '.join(INITS)}")
        if self.gate not in ("none", "unigram", "bigram", "trigram"):
            raise ValueError(f"train.gate is {self.gate!r}; it must be none, unigram, bigram or trigram")


@dataclass
class Saving:
    """Steps between checkpoints, and how many are kept: the newest, and those of lowest validation loss."""

    every: int = 100
    keep_last: int = 2
    keep_best: int = 1

    def check(self) -> None:
        if self.every < 1 or self.keep_last < 1:
            raise ValueError(
                f"checkpoints every {self.every} steps, {self.keep_last} kept: both must be at least 1"
            )


@dataclass
class Experiment:
    """Everything a training run reads. `data`, `model`, `train` decide the result; the rest only the way."""

    data: pipeline.Data = field(default_factory=pipeline.Data)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: Train = field(default_factory=Train)
    mesh: MeshShape = field(default_factory=MeshShape)
    checkpoints: Saving = field(default_factory=Saving)


class Diverged(ValueError):
    """A loss or gradient was not finite."""


@dataclass
class Pace:
    """Seconds a step, smoothed over about twenty."""

    step_s: float = 0.0
    last: tuple[int, float] | None = None

    def at(self, step: int, seconds: float) -> float:
        """Takes note that `step` was done `seconds` into the run; returns the pace."""
        if self.last and step > self.last[0]:
            now = max(seconds - self.last[1], 1e-6) / (step - self.last[0])
            self.step_s = 0.95 * self.step_s + 0.05 * now if self.step_s else now
        self.last = (step, seconds)
        return self.step_s or math.inf  # nothing is known after one step


# Called at every evaluation with (step, parameters); what it returns is shown and kept.
type Evaluator = Callable[[int, dict[str, jax.Array]], dict[str, float]]


@dataclass
class Run:
    """The moving parts of a run, put together by `train.main`.

    Attributes:
      steps: how many steps each stage takes.
      corpora: the tokens of each stage.
      start: step to go on from (0 = from nothing).
    """

    experiment: Experiment
    steps: list[int]
    stages: list[Steps]
    corpora: list[tokens.Tokens]
    checkpoints: Checkpoints
    metrics: Metrics | None
    line: Line
    bars: str = ""
    evaluators: tuple[Evaluator, ...] = ()
    board: Board | None = None
    seconds: float = 0.0
    evaluated: dict[str, dict[str, float]] = field(default_factory=dict)
    pace: "Pace" = field(default_factory=lambda: Pace())

    def train(
        self, params: dict[str, jax.Array], start: int, profile: Path | None = None
    ) -> dict[str, jax.Array]:
        """Runs what is left of every stage and returns the final parameters.

        Raises:
          Diverged: at a step whose loss or gradient is not finite; the last checkpoint is of an earlier step.
          KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint of the last finished step was written.
        """
        meta = self.checkpoints.meta(start) if start else {}
        self.seconds, self.evaluated = meta.get("seconds", 0.0), meta.get("evaluated", {})
        done = 0
        for index, steps in enumerate(self.steps):
            # A checkpoint on the border of two stages belongs to the earlier one, whose state it holds.
            if start <= done + steps:
                params = self._stage(index, params, done, start, meta if start > done else {}, profile)
                profile = None
            done += steps
        return params

    def validate(self, index: int, params: dict[str, jax.Array], windows: int = 0) -> float:
        """Nats a token over the validation part, or over its first `windows` windows."""
        stage, corpus = self.experiment.train.stages[index], self.corpora[index]
        stream = corpus.validation[: windows * stage.seq_len + 1] if windows else corpus.validation
        cut = pipeline.Windows(
            stream,
            corpus.validation_learn,
            seq_len=stage.seq_len,
            seed=0,
            mask=self.experiment.data.document_mask,
        )
        # The batch shape of training: no second compilation for evaluations.
        sums = [
            self.stages[index].evaluate(params, self._place(index, batch))
            for batch in pipeline.whole_pass(cut, stage.batch_size)
        ]
        nats, learnt = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
        return float(nats / learnt)

    def _stage(
        self, index: int, params, done: int, start: int, meta: dict[str, Any], profile: Path | None = None
    ):
        """Stage `index`, whose first step is `done` + 1, from step `start`."""
        stage, compiled = self.experiment.train.stages[index], self.stages[index]
        state = compiled.start(params)
        batches = self.batches(index)
        if meta:
            state = self.checkpoints.restore(start, state, compiled.shardings)
            batches.set_state(meta["batches"])
        else:
            start = done
        end = done + self.steps[index]
        total = jnp.int32(self.steps[index])
        began = time.monotonic() - self.seconds
        waiting: tuple[int, Any] | None = None
        with interrupts() as asked:
            for step in range(start + 1, end + 1):
                if profile and step - start in _PROFILED:
                    _trace(profile, step - start, state)
                state, metrics = compiled.train(state, self._place(index, next(batches)), total)
                if waiting:
                    self._report(stage, *waiting, time.monotonic() - began)
                waiting = (step, metrics)
                evaluates = self._due(step, end, self.experiment.train.evaluate_every)
                saves = step == end or step % self.experiment.checkpoints.every == 0 or asked
                if not (evaluates or saves):
                    continue
                # A state is only judged or saved once its own step is known to be finite.
                self._check(step, metrics)
                validation = self._evaluate(index, step, state.params) if evaluates else None
                self._report(stage, *waiting, time.monotonic() - began, validation)
                waiting = None
                self.seconds = time.monotonic() - began
                if saves:
                    meta = {
                        "batches": batches.get_state(),
                        "seconds": self.seconds,
                        "evaluated": self.evaluated,
                    }
                    self.checkpoints.save(step, state, meta, validation)
                if asked:
                    self.checkpoints.close()
                    raise KeyboardInterrupt
        return state.params

    def choose_steps(self, index: int, params: dict[str, jax.Array]) -> int:
        """How many steps stage `index` takes; if given in seconds, by timing some on a copy of `params`."""
        stage, compiled = self.experiment.train.stages[index], self.stages[index]
        if stage.steps:
            return stage.steps
        if stage.tokens:
            return math.ceil(stage.tokens / (stage.batch_size * stage.seq_len))
        batch = self._place(index, next(self.batches(index)))
        state, fastest_s = compiled.start(params), math.inf
        for attempt in range(_PROBE_STEPS + 1):
            began = time.monotonic()
            state, metrics = compiled.train(state, batch, jnp.int32(stage.most_steps))
            metrics.loss.block_until_ready()
            if attempt:  # the first one compiles
                fastest_s = min(fastest_s, time.monotonic() - began)
        return min(max(int(stage.seconds / fastest_s), stage.least_steps), stage.most_steps)

    def gather(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The parameters, whole, on every process."""
        if jax.process_count() == 1:
            return params
        return multihost_utils.process_allgather(params, tiled=True)

    def _tokens(self, step: int) -> int:
        """Tokens seen after `step`, over all stages."""
        seen = 0
        for stage, steps in zip(self.experiment.train.stages, self.steps):
            taken = min(step, steps)
            seen, step = seen + taken * stage.batch_size * stage.seq_len, step - taken
        return seen

    def batches(self, index: int):
        stage, corpus, seed = (
            self.experiment.train.stages[index],
            self.corpora[index],
            self.experiment.train.seed,
        )
        cut = pipeline.Windows(
            corpus.train,
            corpus.train_learn,
            seq_len=stage.seq_len,
            seed=seed + 1000 * index,
            mask=self.experiment.data.document_mask,
        )
        return pipeline.batches(
            cut, stage.batch_size, process=jax.process_index(), processes=jax.process_count()
        )

    def _place(self, index: int, batch) -> dict[str, jax.Array]:
        rows = self.stages[index].rows
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), rows)
        return {k: jax.make_array_from_process_local_data(rows, x) for k, x in batch.items()}

    def _due(self, step: int, end: int, every: int) -> bool:
        return bool(every) and (step % every == 0 or step == end)

    def _evaluate(self, index: int, step: int, params) -> float:
        loss = self.validate(index, params, self.experiment.train.evaluate_windows)
        self.evaluated[str(step)] = {"validation": loss}
        for evaluator in self.evaluators:
            self.evaluated[str(step)] |= evaluator(step, params)
        return loss

    def _check(self, step: int, metrics) -> None:
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = self.checkpoints.steps
            raise Diverged(
                f"step {step} gave loss {loss} and gradient norm {norm}; "
                + (
                    f"the checkpoint of step {kept[-1]} is the last good one"
                    if kept
                    else "no checkpoint was written yet"
                )
            )

    def _report(
        self, stage: Stage, step: int, metrics, seconds: float, validation: float | None = None
    ) -> None:
        self._check(step, metrics)
        step_s, model = self.pace.at(step, seconds), self.experiment.model
        peak = flops.peak(self.experiment.train.compute.peak_flops)
        row = Row(
            step=step,
            stage=stage.name,
            loss=float(metrics.loss),
            grad_norm=float(metrics.grad_norm),
            rate=float(metrics.factor) * self.experiment.train.optimizer.rate,
            tokens=self._tokens(step),
            seconds=seconds,
            tokens_per_s=stage.batch_size * stage.seq_len / step_s,
            load_balance=float(metrics.load_balance),
            expert_load_max=float(metrics.expert_load_E.max()),
            utilisation=peak and flops.step(model, stage.batch_size, stage.seq_len) / step_s / peak,
            validation=validation,
        )
        if self.metrics:
            self.metrics.write(row)
        if self.board:
            self.board.write(row)
        last = list(self.evaluated.values())[-1:]
        words = "".join(f"validation {v['validation']:.3f}{self.bars}  " for v in last)
        self.line.show(row, words, (sum(self.steps) - step) * self.pace.step_s)


def _trace(folder: Path, step: int, state: State) -> None:
    jax.block_until_ready(state)
    if step == _PROFILED[0]:
        jax.profiler.start_trace(str(folder))
    else:
        jax.profiler.stop_trace()


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Yields a list that becomes true when Ctrl-C or SIGTERM asks to stop; asked twice, it stops at once."""
    asked: list[int] = []

    def ask(number, frame):
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
