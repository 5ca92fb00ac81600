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

from train import data as pipeline
from train import flops, tokens
from train.checkpoint import Checkpoints
from train.experiment import Stage, TrainingExperiment
from train.progress import Board, MetricsFile, Pace, Row, TrainingLine
from train.step import Steps, TrainState

_PROBE_STEPS = 5
_PROFILED = (10, 15)  # --profile traces from the one to the other, counted from where a run (re)starts


class Diverged(ValueError):
    """A loss or gradient was not finite."""


# Called at every evaluation with (step, parameters); what it returns is shown and kept.
type Evaluator = Callable[[int, dict[str, jax.Array]], dict[str, float]]


@dataclass
class Trainer:
    """The moving parts of a run, put together by `train.main`.

    Attributes:
      steps: how many steps each stage takes.
      corpora: the tokens of each stage.
      start: step to go on from (0 = from nothing).
    """

    experiment: TrainingExperiment
    steps: list[int]
    stages: list[Steps]
    corpora: list[tokens.TokenizedCorpus]
    checkpoints: Checkpoints
    metrics: MetricsFile | None
    line: TrainingLine
    bars: str = ""
    evaluators: tuple[Evaluator, ...] = ()
    board: Board | None = None
    seconds: float = 0.0
    evaluated: dict[str, dict[str, float]] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)

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


def _trace(folder: Path, step: int, state: TrainState) -> None:
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
