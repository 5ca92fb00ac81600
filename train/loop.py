"""The training loop: stages, steps, evaluations and checkpoints. An interrupted run resumes bit for bit.

    prepare data -> for each stage: [step -> metrics -> evaluate? -> checkpoint?] -> full validation -> export

The loop stays one step ahead of the device: it reads the metrics of step n after it dispatched step n + 1.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from train import data as pipeline
from train import flops
from train.checkpoint import Checkpoints
from train.experiment import Stage, TrainingExperiment
from train.objective import Params
from train.progress import Board, MetricsFile, Pace, Row, TrainingLine
from train.step import CompiledStage, StepMetrics, TrainState
from train.tokens import TokenizedCorpus

_PROFILED = (10, 15)  # --profile traces between these steps, counted from where the process started


class Diverged(ValueError):
    """A loss or gradient was not finite."""


# Called at every evaluation with (step, parameters); its figures are kept in summary.json.
type Evaluator = Callable[[int, Params], dict[str, float]]


def stage_batches(
    experiment: TrainingExperiment, index: int, corpus: TokenizedCorpus
) -> grain.DatasetIterator:
    """Returns this process's endless iterator over the training batches of stage `index`."""
    stage = experiment.train.stages[index]
    windows = pipeline.Windows(
        corpus.train,
        corpus.train_loss_mask,
        seq_len=stage.seq_len,
        seed=experiment.train.seed + 1000 * index,
        document_mask=experiment.data.document_mask,
        separator=corpus.separator,
    )
    return pipeline.batches(
        windows, stage.batch_size, process=jax.process_index(), processes=jax.process_count()
    )


@dataclass
class Trainer:
    """Runs the stages of an experiment. `train.prepare.prepare_run` builds it.

    Attributes:
      steps: number of steps of each stage.
      stages: compiled functions of each stage.
      corpora: tokens of each stage.
      metrics: None except in the first process.
      baselines: n-gram entropies by name, in nats per token; the progress line shows `train.must_beat`.
      board: TensorBoard events, if any.
      seconds: training time so far, over all processes that resumed this run.
      evaluated: figures of every evaluation so far, by step.
    """

    experiment: TrainingExperiment
    steps: list[int]
    stages: list[CompiledStage]
    corpora: list[TokenizedCorpus]
    checkpoints: Checkpoints
    metrics: MetricsFile | None
    line: TrainingLine
    baselines: dict[str, float] = field(default_factory=dict)
    evaluators: tuple[Evaluator, ...] = ()
    board: Board | None = None
    seconds: float = 0.0
    evaluated: dict[str, dict[str, float]] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)

    def train(self, params: Params, start_step: int, profile: Path | None = None) -> Params:
        """Runs the remaining steps of every stage and returns the final parameters.

        Args:
          params: initial parameters; replaced by those of the checkpoint if there is one.
          start_step: step of the checkpoint to resume from (0 = none).
          profile: folder for a profiler trace.

        Raises:
          Diverged: the loss or gradient of a step is not finite; the last checkpoint is of an earlier step.
          KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint of the last finished step is written.
        """
        meta = self.checkpoints.meta(start_step) if start_step else {}
        self.seconds, self.evaluated = meta.get("seconds", 0.0), meta.get("evaluated", {})
        done = 0
        for index, steps in enumerate(self.steps):
            # A checkpoint at the boundary of two stages holds the state of the earlier one.
            if start_step <= done + steps:
                stage_meta = meta if start_step > done else {}
                params = self._run_stage(index, params, done, start_step, stage_meta, profile)
                profile = None
            done += steps
        return params

    def validate(self, index: int, params: Params, windows: int = 0) -> float:
        """Returns nats per loss token of the validation split, or of its first `windows` windows."""
        stage, corpus = self.experiment.train.stages[index], self.corpora[index]
        stream = corpus.validation[: windows * stage.seq_len + 1] if windows else corpus.validation
        cut = pipeline.Windows(
            stream,
            corpus.validation_loss_mask,
            seq_len=stage.seq_len,
            seed=0,
            document_mask=self.experiment.data.document_mask,
            separator=corpus.separator,
        )
        compiled = self.stages[index]
        # The batch shape of training, so that evaluation compiles once.
        sums = [
            compiled.evaluate(params, compiled.place(batch))
            for batch in pipeline.sequential_batches(cut, stage.batch_size)
        ]
        nats, loss_tokens = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
        return float(nats / loss_tokens)

    def _run_stage(
        self,
        index: int,
        params: Params,
        done: int,
        start_step: int,
        meta: dict[str, Any],
        profile: Path | None = None,
    ) -> Params:
        """Runs stage `index`, whose first step is `done` + 1, after `start_step`."""
        stage, compiled = self.experiment.train.stages[index], self.stages[index]
        state = compiled.init_state(params)
        batches = stage_batches(self.experiment, index, self.corpora[index])
        if meta:
            state = self.checkpoints.restore(start_step, state, compiled.shardings)
            batches.set_state(meta["batches"])
        else:
            start_step = done
        end = done + self.steps[index]
        total = jnp.int32(self.steps[index])
        began = time.monotonic() - self.seconds
        unreported: tuple[int, StepMetrics] | None = None
        with deferred_interrupts() as interrupts:
            for step in range(start_step + 1, end + 1):
                if profile and step - start_step in _PROFILED:
                    _trace(profile, step - start_step, state)
                state, metrics = compiled.train(state, compiled.place(next(batches)), total)
                if unreported:
                    self._report(stage, *unreported, time.monotonic() - began)
                unreported = (step, metrics)
                every = self.experiment.train.evaluate_every
                evaluates = bool(every) and (step % every == 0 or step == end)
                saves = step == end or step % self.experiment.checkpoints.every == 0 or interrupts
                if not (evaluates or saves):
                    continue
                # A state is evaluated or saved only once its own step is known to be finite.
                self._check(step, metrics)
                validation = self._evaluate(index, step, state.params) if evaluates else None
                self._report(stage, *unreported, time.monotonic() - began, validation)
                unreported = None
                self.seconds = time.monotonic() - began
                if saves:
                    meta = {
                        "batches": batches.get_state(),
                        "seconds": self.seconds,
                        "evaluated": self.evaluated,
                    }
                    self.checkpoints.save(step, state, meta, validation)
                if interrupts:
                    self.checkpoints.close()
                    raise KeyboardInterrupt
        return state.params

    def tokens_after(self, step: int) -> int:
        """Training tokens seen after `step`, over all stages."""
        seen = 0
        for stage, steps in zip(self.experiment.train.stages, self.steps):
            taken = min(step, steps)
            seen, step = seen + taken * stage.batch_size * stage.seq_len, step - taken
        return seen

    def _evaluate(self, index: int, step: int, params: Params) -> float:
        loss = self.validate(index, params, self.experiment.train.evaluate_windows)
        self.evaluated[str(step)] = {"validation": loss}
        for evaluator in self.evaluators:
            self.evaluated[str(step)] |= evaluator(step, params)
        return loss

    def _check(self, step: int, metrics: StepMetrics) -> None:
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        kept = self.checkpoints.steps
        last_good = (
            f"the checkpoint of step {kept[-1]} is the last good one"
            if kept
            else "no checkpoint was written yet"
        )
        raise Diverged(f"step {step} gave loss {loss} and gradient norm {norm}; {last_good}")

    def _report(
        self, stage: Stage, step: int, metrics: StepMetrics, seconds: float, validation: float | None = None
    ) -> None:
        self._check(step, metrics)
        train, model, step_s = self.experiment.train, self.experiment.model, self.pace.at(step, seconds)
        peak = flops.peak(train.compute.peak_flops)
        row = Row(
            step=step,
            stage=stage.name,
            loss=float(metrics.loss),
            grad_norm=float(metrics.grad_norm),
            rate=float(metrics.lr_scale) * train.optimizer.learning_rate,
            tokens=self.tokens_after(step),
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
        self.line.show(row, self._validation_text(), (sum(self.steps) - step) * self.pace.step_s)

    def _validation_text(self) -> str:
        """The last validation loss and the baseline it must beat, for the progress line."""
        name = self.experiment.train.must_beat
        baseline = f" ({name} {self.baselines[name]:.3f})" if name in self.baselines else ""
        last = list(self.evaluated.values())[-1:]
        return "".join(f"validation {figures['validation']:.3f}{baseline}  " for figures in last)


def _trace(folder: Path, step: int, state: TrainState) -> None:
    jax.block_until_ready(state)
    if step == _PROFILED[0]:
        jax.profiler.start_trace(str(folder))
    else:
        jax.profiler.stop_trace()


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Yields a list that becomes non-empty on Ctrl-C or SIGTERM; a second signal raises KeyboardInterrupt."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
