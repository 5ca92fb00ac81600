"""The cost model of a step: time linear in prompt tokens, rows and context."""

from dataclasses import dataclass

from serving.engine.plan import StepPlan


@dataclass
class StepCost:
    """Seconds of prefill per token, and of a decode step: `step_s + row_s * rows + context_s * context_tok`.

    The defaults describe an A10G with a 7B model: a least-squares fit to the profile that the authors of VTC
    published, with `step_s` raised from 16.3 to 20 ms for the work of the host.
    """

    prefill_s: float = 0.2137e-3
    step_s: float = 20e-3
    row_s: float = 0.245e-3
    context_s: float = 2.02e-6

    def check(self) -> None:
        for name in ("prefill_s", "step_s", "row_s", "context_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"cost.{name} is {getattr(self, name)}; it must be at least 0")

    def prefill(self, plan: StepPlan) -> float:
        """Seconds to prefill all chunks of a plan."""
        return self.prefill_s * sum(chunk.end - chunk.start for chunk in plan.chunks)

    def decode(self, rows: int, context_tok: int, steps: int) -> float:
        """Seconds of `steps` decode steps of `rows` requests that first hold `context_tok` tokens."""
        if not rows:
            return 0.0
        growth_tok = rows * steps * (steps - 1) // 2
        return steps * (self.step_s + self.row_s * rows) + self.context_s * (steps * context_tok + growth_tok)

    def steps_within(self, rows: int, context_tok: int, seconds: float, max_steps: int) -> int:
        """The smallest number of steps that take at least `seconds`, but no more than `max_steps`."""
        low, high = 1, max_steps
        while low < high:
            middle = (low + high) // 2
            if self.decode(rows, context_tok, middle) >= seconds:
                high = middle
            else:
                low = middle + 1
        return low

    def at_speed(self, speed: float) -> "StepCost":
        """The costs of a device that is so many times as fast."""
        return StepCost(
            self.prefill_s / speed, self.step_s / speed, self.row_s / speed, self.context_s / speed
        )
