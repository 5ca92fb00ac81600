"""Service cost: a monotone function h(extend, hit, output) in ledger units.

A policy charges differences of `h`, so after any sequence of charges a request has paid exactly `h` of what
was executed. There are three cost functions: weighted tokens (VTC's default; cached tokens may be cheaper or
free), memory-time, and a profiled quadratic.

Source: VTC (arXiv 2401.00588), section 3 for the choices, section 4.2 for general h.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from serving.fair.ledger import units


class ServiceCost(Protocol):
    """The cost function h and its bound over a batch."""

    def of(self, extend_tok: int, hit_tok: int, output_tok: int) -> int:
        """Ledger units for a prefill of `extend_tok + hit_tok` tokens and for `output_tok` decoded tokens."""

    @property
    def per_output(self) -> int | None:
        """Ledger units per output token if that is constant, else None."""

    def batch_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> int:
        """Upper bound in ledger units on what one client is charged from just before its last admission on.

        The client's live requests, including the new one, compute and hold at most `memory_tok` prompt and
        output tokens. Up to `max_hit_tok` of a prompt come from the cache and occupy none of that memory.
        """


@dataclass(frozen=True)
class WeightedTokens:
    """Weights per token: `prompt` computed input, `cached` input from the prefix cache, `output` decoded."""

    prompt: float | Fraction = 1
    output: float | Fraction = 2
    cached: float | Fraction = 1
    _units: tuple[int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "cached"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"the weight of a {name} token is {getattr(self, name)}; it must be at least 0"
                )
        object.__setattr__(self, "_units", (units(self.prompt), units(self.cached), units(self.output)))

    def of(self, extend_tok: int, hit_tok: int, output_tok: int) -> int:
        prompt, cached, output = self._units
        return prompt * extend_tok + cached * hit_tok + output * output_tok

    @property
    def per_output(self) -> int:
        return self._units[2]

    def batch_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> int:
        prompt, cached, output = self._units
        # A prompt token is either computed, in place of an output token, or hit: assume the costlier way.
        computed = max(0, prompt - output)
        hit_tok = min(max_hit_tok, max_prompt_tok) if computed < cached else 0
        computed_tok = min(max_prompt_tok - hit_tok, memory_tok)
        return output * memory_tok + cached * hit_tok + computed * computed_tok


@dataclass(frozen=True)
class MemoryTime:
    """Weighted tokens plus `rent` per token of context and decode step: long contexts pay for memory."""

    prompt: float | Fraction = 1
    output: float | Fraction = 2
    rent: float | Fraction = 0.001

    @property
    def per_output(self) -> None:
        return None

    def of(self, extend_tok: int, hit_tok: int, output_tok: int) -> int:
        held = output_tok * (extend_tok + hit_tok) + output_tok * (output_tok + 1) // 2
        return (
            units(self.prompt) * (extend_tok + hit_tok)
            + units(self.output) * output_tok
            + units(self.rent) * held
        )

    def batch_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> int:
        # x + y <= M over the batch; sums of x*y and y*(y+1)/2 are largest if one request holds all of M.
        linear = WeightedTokens(self.prompt, self.output, self.prompt).batch_bound(
            memory_tok=memory_tok, max_prompt_tok=max_prompt_tok, max_hit_tok=max_hit_tok
        )
        return linear + units(self.rent) * memory_tok * (memory_tok + 1 + max_hit_tok)


@dataclass(frozen=True)
class Profiled:
    """h(x, y) = a*x + b*y + c*x*y + d*y^2 + e, fitted to measured milliseconds (VTC, App. B.2)."""

    a: float = 0.21001891
    b: float = 0.10075395
    c: float = 0.0039868
    d: float = 0.00324733
    e: float = 1.14601454

    @property
    def per_output(self) -> None:
        return None

    def of(self, extend_tok: int, hit_tok: int, output_tok: int) -> int:
        x, y = extend_tok + hit_tok, output_tok
        a, b, c, d, e = (units(v) for v in (self.a, self.b, self.c, self.d, self.e))
        return a * x + b * y + c * x * y + d * y * y + e

    def batch_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> int:
        m, hit = memory_tok, max_hit_tok
        linear = max(self.a, self.b) * m + self.a * hit + self.e * m
        return units(linear + self.c * m * (m + hit) + self.d * m * m)


COSTS: dict[str, Callable[[float | Fraction, float | Fraction], ServiceCost]] = {
    "tokens": lambda prompt, output: WeightedTokens(prompt, output, prompt),
    "extend": lambda prompt, output: WeightedTokens(prompt, output, 0),
    "memory_time": lambda prompt, output: MemoryTime(prompt, output),
    "profiled": lambda prompt, output: Profiled(),
}


def make_cost(cost: str | ServiceCost, prompt: float | Fraction, output: float | Fraction) -> ServiceCost:
    """Returns the cost of that name, or the given cost unchanged.

    Raises:
      ValueError: unknown name.
    """
    if not isinstance(cost, str):
        return cost
    if cost not in COSTS:
        raise ValueError(f"unknown cost {cost!r}; known: {', '.join(COSTS)}")
    return COSTS[cost](prompt, output)
