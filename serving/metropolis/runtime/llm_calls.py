"""An agent's question on its way to the model and back: answered from the log if it was paid for already."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mixattn.evals.llm import Completion, Divergence, LanguageModel, digest
from serving.metropolis.runtime.retry import Gate, RetryPolicy, persist
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.store import Call, Store
from serving.metropolis.world import AgentId, StepContext, key


@dataclass(slots=True)
class LlmCalls:
    """Asks `llm` for the agents of one run.

    Attributes:
      seed: of the run; every call has its own, by agent, step and number within the step.
      gate: how many calls may be at the model at once; None = any number.
      now: seconds, of the loop that the run lives in.
      paid: answers of an earlier start of this run, by agent, step and number; each is used once.
    """

    llm: LanguageModel
    seed: int
    patience: RetryPolicy
    gate: Gate | None
    store: Store | None
    meter: RunStats
    now: Callable[[], float]
    paid: dict[tuple[AgentId, int, int], Call] = field(default_factory=dict)

    async def __call__(
        self, ctx: StepContext, index: int, prompt, max_tokens: int, temperature: float, stop
    ) -> Completion:
        """Call number `index` of an agent's step.

        Raises:
          CallFailed: not answered in time, however often it was tried.
          Divergence: it was answered when it asked something else.
        """
        if (paid := self._paid(ctx, index, prompt)) is not None:
            return paid
        seed, start_s = key(self.seed, ctx.agent, ctx.step, index), self.now()

        async def attempt() -> Completion:
            self.meter.flight(+1, self.now())
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
                self.meter.flight(-1, self.now())

        if self.gate is None:
            done, retries = await persist(attempt, self.patience)
        else:
            async with self.gate.enter(ctx.step):
                done, retries = await persist(attempt, self.patience)
        self.meter.answered(done.usage.prompt_tok, done.usage.output_tok, retries)
        if self.store is not None:
            text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
            row = (ctx.agent, ctx.step, index, text, digest(prompt), done, start_s, self.now(), retries)
            self.store.call(Call(*row))
        return done

    def _paid(self, ctx: StepContext, index: int, prompt) -> Completion | None:
        paid = self.paid.pop((ctx.agent, ctx.step, index), None)
        if paid is None:
            return None
        if paid.prompt_digest != digest(prompt):
            raise Divergence(
                f"agent {ctx.agent!r} at step {ctx.step}, call {index}, was answered when it asked"
                f" {paid.prompt!r} and now asks {prompt!r}"
            )
        self.meter.reused += 1
        return paid.completion
