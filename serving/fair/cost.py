"""What a request's work costs: a monotone h(extend, hit, output), in ledger units.

A policy bills differences of `h`, so after any sequence of charges a request has paid exactly `h` of what was
executed. Four bodies: weighted tokens (VTC's default; with a cheaper or free cached token), memory-time, and
the quadratic profile.

Source: VTC (arXiv 2401.00588) section 3 for the choices, section 4.2 for general h.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from serving.fair.ledger import units


class ServiceCost(Protocol):
    def of(self, extend_tok: int, hit_tok: int, output_tok: int) -> int:
        """Ledger units of a prefill of `extend + hit` tokens and of `output_tok` decoded ones."""

    @property
    def per_output(self) -> int | None:
        """Ledger units of every output token if that is one number, else None."""

    def batch_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> int:
        """The most one client can still be charged from just before its last admission on, in ledger units.

        Its live requests, the new one included, compute and hold at most `memory_tok` prompt and output
        tokens. Up to `max_hit_tok` of a prompt come from a cache, where they take no room of the request's
        own.
        """


@dataclass(frozen=True)
class WeightedTokens:
    """`prompt` a computed input token, `cached` one served from the prefix cache, `output` a decoded one."""

    prompt: float | Fraction = 1
    output: float | Fraction = 2
    cached: float | Fraction = 1

    def __post_init__(self):
        for name in ("prompt", "output", "cached"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"the weight of a {name} token is {getattr(self, name)}; it must be at least 0"
                )
        object.__setattr__(self, "_units", (units(self.prompt), units(self.cached), units(self.output)))

    def of(self, extend_tok: int, hit_tok: int, output_tok: int) -> int:
        prompt, cached, output = self._units  # type: ignore[attr-defined]
        return prompt * extend_tok + cached * hit_tok + output * output_tok

    @property
    def per_output(self) -> int:
        return self._units[2]  # type: ignore[attr-defined]

    def batch_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> int:
        prompt, cached, output = self._units  # type: ignore[attr-defined]
        computed, hit = max(0, prompt - output), min(max_hit_tok, max_prompt_tok)
        # Every prompt token is either computed (in place of an output) or hit; the dearer way first.
        free = max_prompt_tok - hit if computed < cached else max_prompt_tok
        hit = hit if computed < cached else 0
        return output * memory_tok + cached * hit + computed * min(free, memory_tok)


@dataclass(frozen=True)
class MemoryTime:
    """Weighted tokens plus `rent` a token of context held for a decode step: long contexts pay for room."""

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
        # x + y <= M over the batch; sums of x*y and y*(y+1)/2 are largest for one request that holds all
        # of it.
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


def named(cost: str | ServiceCost, prompt: float | Fraction, output: float | Fraction) -> ServiceCost:
    """A cost by name, or the given one."""
    if not isinstance(cost, str):
        return cost
    if cost not in COSTS:
        raise ValueError(f"unknown cost {cost!r}; known: {', '.join(COSTS)}")
    return COSTS[cost](prompt, output)
