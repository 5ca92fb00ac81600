"""How long a step takes on a device that is not there: linear in tokens, rows and context."""

from dataclasses import dataclass

from serving.engine.plan import StepPlan


@dataclass
class StepCost:
    """Seconds of prefill a token, and of a decode step: `step_s + row_s * rows + context_s * context tokens`.

    The defaults are an A10G with a 7B model: least squares over the profile that the authors of VTC
    published, with `step_s` raised from 16.3 to 20 ms for the host's part.
    """

    prefill_s: float = 0.2137e-3
    step_s: float = 20e-3
    row_s: float = 0.245e-3
    context_s: float = 2.02e-6

    def check(self) -> None:
        for name in ("prefill_s", "step_s", "row_s", "context_s"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"cost.{name} is {getattr(self, name)}; a step cannot take less than no time"
                )

    def prefill(self, plan: StepPlan) -> float:
        return self.prefill_s * sum(chunk.end - chunk.start for chunk in plan.chunks)

    def decode(self, rows: int, context_tok: int, steps: int) -> float:
        """`steps` decode steps of `rows` requests that hold `context_tok` tokens at the first."""
        if not rows:
            return 0.0
        grown = rows * steps * (steps - 1) // 2
        return steps * (self.step_s + self.row_s * rows) + self.context_s * (steps * context_tok + grown)

    def steps_within(self, rows: int, context_tok: int, seconds: float, most: int) -> int:
        """The fewest steps that take at least `seconds`, at most `most`."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self.decode(rows, context_tok, middle) >= seconds:
                high = middle
            else:
                low = middle + 1
        return low
