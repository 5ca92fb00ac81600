"""Workloads: simulated requests, and random sources of them. Traces of files are in `serving.sim.traces`."""

import math
import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.kvcache.tokens import TokenSequence
from serving.request import ClientId, RequestId
from serving.sim.synthetic_tokens import SyntheticTokens, TokenSegment


@dataclass(slots=True)
class SimulatedRequest:
    """A request of a workload, with the output length that it will have.

    Attributes:
      arrival_s: time of arrival; if `after` is set, seconds after the end of that request, or of the last of
        several.
      tokens: the prompt, possibly followed by the output (which the prefix cache then keeps).
      output_tok: tokens it will produce. max_output_tok: the limit it asks for, which the scheduler knows.
      cancel_s: seconds after its arrival at which its client cancels it, if at all.
      deadline_s: seconds after its arrival at which it ends, finished or not.
      priority: among a client's requests, smaller goes first. program: see `serving.request.Request`.
    """

    id: RequestId
    client: ClientId
    arrival_s: float
    tokens: TokenSequence
    prompt_tok: int
    output_tok: int
    max_output_tok: int
    cache_salt: Hashable = ""
    after: RequestId | tuple[RequestId, ...] | None = None
    cancel_s: float | None = None
    deadline_s: float | None = None
    priority: int = 0
    program: str = ""


def predecessors(request: SimulatedRequest) -> tuple[RequestId, ...]:
    """The requests that it follows."""
    after = request.after
    return () if after is None else (after,) if isinstance(after, str) else after


type Length = int | tuple[int, int] | tuple[str, float, float, int]
"""A number, (low, high) inclusive, or ("lognormal", median, sigma, maximum)."""


def draw_length(length: Length, rng: random.Random) -> int:
    """A random length in tokens."""
    match length:
        case int():
            return length
        case (int(low), int(high)):
            return rng.randint(low, high)
        case ("lognormal", median, sigma, maximum):
            return min(maximum, max(1, round(rng.lognormvariate(math.log(median), sigma))))
    raise ValueError(
        f"length {length!r} is not a number, (low, high) or ('lognormal', median, sigma, maximum)"
    )


@dataclass
class Source:
    """Requests of one client.

    Attributes:
      rate: requests per second; `rate_end` if it changes linearly until `end_s`.
      arrivals: `even` has gaps of 1/rate and a random phase, `poisson` exponential gaps, `burst` all at once
        at `start_s` (rate * duration of them).
      on_s, off_s: sends for `on_s`, then pauses for `off_s` and drops what arrives; 0: never pauses.
      pause_first: starts with the pause.
      prompt, output: lengths in tokens, without the prefix.
      max_output: the output limit it asks for; None: exactly what it will produce.
      prefix: shared prefixes, each (name, length); one is drawn for each request.
      popularity: weights of the prefixes; equal if empty.
      cancels: fraction of requests that are cancelled, after a uniform time of up to `cancel_s`.
    """

    client: ClientId
    rate: float = 1.0
    rate_end: float | None = None
    start_s: float = 0.0
    end_s: float = 600.0
    arrivals: Literal["even", "poisson", "burst"] = "even"
    on_s: float = 0.0
    off_s: float = 0.0
    pause_first: bool = False
    prompt: Length = 256
    output: Length = 256
    max_output: int | None = None
    prefix: Sequence[tuple[str, int]] = ()
    popularity: Sequence[float] = ()
    cancels: float = 0.0
    cancel_s: float = 0.0

    def check(self) -> None:
        if self.rate <= 0 or self.end_s <= self.start_s:
            raise ValueError(
                f"client {self.client!r} sends {self.rate} requests per second "
                f"from {self.start_s} s to {self.end_s} s"
            )
        if self.arrivals not in ("even", "poisson", "burst"):
            raise ValueError(
                f"client {self.client!r} has arrivals={self.arrivals!r}; known: even, poisson, burst"
            )

    def requests(self, rng: random.Random, tag: str = "") -> Iterator[SimulatedRequest]:
        """Its requests in order of arrival; `tag` keeps the ids of several sources of one client apart."""
        for i, at_s in enumerate(self._times(rng)):
            prompt, output = max(1, draw_length(self.prompt, rng)), max(1, draw_length(self.output, rng))
            id = f"{self.client}-{tag}{i}"
            segments: list[TokenSegment] = []
            if self.prefix:
                segments.append(rng.choices(self.prefix, self.popularity or None)[0])
            segments.append((id, prompt))
            max_output = output if self.max_output is None else max(output, self.max_output)
            cancel_s = rng.uniform(0, self.cancel_s) if rng.random() < self.cancels else None
            total = sum(n for _, n in segments)
            yield SimulatedRequest(
                id, self.client, at_s, SyntheticTokens(segments), total, output, max_output, cancel_s=cancel_s
            )

    def _times(self, rng: random.Random) -> Iterator[float]:
        if self.arrivals == "burst":
            yield from [self.start_s] * round(self.rate * (self.end_s - self.start_s))
            return
        at_s = self.start_s + (rng.random() / self.rate if self.arrivals == "even" else self._gap(0.0, rng))
        while at_s < self.end_s:
            if not self._pauses(at_s):
                yield at_s
            at_s += self._gap(at_s, rng)

    def _gap(self, at_s: float, rng: random.Random) -> float:
        rate = self.rate
        if self.rate_end is not None:
            rate += (self.rate_end - rate) * (at_s - self.start_s) / (self.end_s - self.start_s)
        return rng.expovariate(rate) if self.arrivals == "poisson" else 1 / rate

    def _pauses(self, at_s: float) -> bool:
        if not self.on_s or not self.off_s:
            return False
        at_s = (at_s - self.start_s) % (self.on_s + self.off_s)
        return at_s < self.off_s if self.pause_first else at_s >= self.on_s


def merged(sources: Iterable[Source], seed: int) -> list[SimulatedRequest]:
    """All requests in order of arrival. Each source has random numbers of its own."""
    requests: list[SimulatedRequest] = []
    for i, source in enumerate(sources):
        source.check()
        requests += source.requests(random.Random(f"{seed}/{i}/{source.client}"), f"{i}." if i else "")
    return sorted(requests, key=lambda request: request.arrival_s)
