"""The engine of a mixture model larger than memory: `serving.Engine`, with passes that bring the experts.

Requests, policies, pages of K/V, sampling and the event log are the engine's own. What differs is a step: all
prompt chunks and all rows that decode ride on one pass over the weights.
"""

from collections.abc import Callable
from typing import Any

from mixattn.model import Transformer
from serving.config import EngineConfig
from serving.engine.device_state import DeviceState, StepOutput
from serving.engine.engine import Engine
from serving.engine.model_runner import InFlightStep, ModelRunner
from serving.engine.plan import StepPlan
from serving.engine.stacks import Stack
from serving.offload.runtime.stack import OffloadStack


class OnePassRunner(ModelRunner):
    """Runs all of a plan in one pass."""

    def launch(self, state: DeviceState, plan: StepPlan) -> tuple[DeviceState, InFlightStep]:
        """Runs the plan; unlike its parent, to the end.

        Raises:
          RequestFault: a request cannot be prepared; nothing was started then.
          OSError, ValueError: reading experts failed.
        """
        batches = [plan.chunks[i : i + self._rows] for i in range(0, len(plan.chunks), self._rows)]
        prefills = []
        for chunks in batches:
            features = self._features([c.req for c in chunks], prompt=True)
            prefills.append((self._batch(chunks, features), features))
        decode = None
        if plan.decode:
            features = self._features(plan.decode, prompt=False)
            decode = self._rows_of(plan.decode, plan.steps, features), features
        stack = self._programs.stack
        assert isinstance(stack, OffloadStack)
        outputs: list[StepOutput]
        state, outputs = stack.run_pass(self._programs.compiled, state, prefills, decode)
        return state, InFlightStep(plan, batches, outputs, [plan.decode] if plan.decode else [])


class OffloadEngine(Engine):
    """See the module.

    Args:
      model: without experts.
      stack: brings the experts.
      config: one decode step per pass, and none ahead of another.
      check: called before a step's tokens count; raises ValueError if a file was changed.
      options: as `Engine`'s.

    Raises:
      ValueError: a configuration that asks for more.
    """

    _runner_class = OnePassRunner

    def __init__(
        self,
        model: Transformer,
        stack: OffloadStack,
        config: EngineConfig,
        *,
        check: Callable[[], None] = lambda: None,
        **options: Any,
    ):
        if tuple(config.limits.decode_steps) != (1,) or config.overlap:
            raise ValueError(
                f"decode_steps={tuple(config.limits.decode_steps)} and overlap={config.overlap};"
                " a pass over streamed weights is one decode step, and the next begins after it"
            )
        if config.max_slots % stack.rows or any(rows % stack.rows for rows in config.decode_rows):
            raise ValueError(
                f"max_slots={config.max_slots} and decode_rows={config.decode_rows} must be multiples of the"
                f" {stack.rows} rows of a micro-batch"
            )
        self._offload_stack, self._check_files = stack, check
        super().__init__(model, config, **options)

    def _stack(self, model: Transformer) -> Stack:
        return self._offload_stack

    def _commit(self, in_flight: InFlightStep) -> None:
        self._check_files()
        super()._commit(in_flight)

    def _reset(self, plan: StepPlan, why: Exception) -> None:
        """A disk that fails, or a file that was changed, fails every pass: the caller must know."""
        if isinstance(why, OSError | ValueError):
            raise why
        super()._reset(plan, why)
