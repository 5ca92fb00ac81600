"""Calls of one run to the language model: replayed from the log if recorded there, else sent with retries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mixattn.evals.llm import (
    Completion,
    Divergence,
    LanguageModel,
    Prompt,
    RetryPolicy,
    call_with_retries,
    digest,
)
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.semaphore import PrioritySemaphore
from serving.metropolis.runtime.store import Call, Store
from serving.metropolis.world import AgentId, StepContext, stable_hash


@dataclass(slots=True)
class LlmCalls:
    """Calls `llm` on behalf of the agents of one run.

    Attributes:
      seed: of the run. Each call's own seed is a hash of it with agent, step and index.
      semaphore: limits calls in flight; None means no limit.
      now: the event loop's clock, in seconds.
      recorded: calls that the log holds, by agent, step and index. Each is used once.
    """

    llm: LanguageModel
    seed: int
    retry_policy: RetryPolicy
    semaphore: PrioritySemaphore | None
    store: Store | None
    stats: RunStats
    now: Callable[[], float]
    recorded: dict[tuple[AgentId, int, int], Call] = field(default_factory=dict)

    async def __call__(
        self,
        ctx: StepContext,
        index: int,
        prompt: Prompt,
        max_tokens: int,
        temperature: float,
        stop: Sequence[str],
    ) -> Completion:
        """Makes call number `index` of an agent's step.

        Raises:
          CallFailed: no attempt succeeded.
          Divergence: the log holds this call with another prompt.
        """
        if (logged := self._from_log(ctx, index, prompt)) is not None:
            return logged
        seed, start_s = stable_hash(self.seed, ctx.agent, ctx.step, index), self.now()

        async def attempt() -> Completion:
            self.stats.record_in_flight(+1, self.now())
            try:
                return await self.llm.complete(
                    prompt,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                    priority=ctx.step,
                    client=ctx.agent,
                    stop=stop,
                )
            finally:
                self.stats.record_in_flight(-1, self.now())

        if self.semaphore is None:
            completion, retries = await call_with_retries(attempt, self.retry_policy)
        else:
            async with self.semaphore.slot(ctx.step):
                completion, retries = await call_with_retries(attempt, self.retry_policy)
        self.stats.record_call(completion.usage.prompt_tok, completion.usage.output_tok, retries)
        if self.store is not None:
            text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
            row = (ctx.agent, ctx.step, index, text, digest(prompt), completion, start_s, self.now(), retries)
            self.store.call(Call(*row))
        return completion

    def _from_log(self, ctx: StepContext, index: int, prompt: Prompt) -> Completion | None:
        call = self.recorded.pop((ctx.agent, ctx.step, index), None)
        if call is None:
            return None
        if call.prompt_digest != digest(prompt):
            raise Divergence(
                f"agent {ctx.agent!r} at step {ctx.step}, call {index}: the log holds the prompt"
                f" {call.prompt!r}, the agent now asks {prompt!r}"
            )
        self.stats.reused += 1
        return call.completion
