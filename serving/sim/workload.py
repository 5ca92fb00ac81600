"""Workloads: simulated requests, random sources of them, and traces read from a file."""

import json
import math
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from serving.kvcache.tokens import TokenIds, TokenSequence
from serving.request import ClientId, RequestId
from serving.sim.synthetic_tokens import SyntheticTokens, TokenSegment


@dataclass(slots=True)
class SimulatedRequest:
    """A request of a workload, with the output length that it will have.

    Attributes:
      arrival_s: time of arrival; if `after` is set, seconds after the end of that request.
      tokens: the prompt, possibly followed by the output (which the prefix cache then keeps).
      output_tok: tokens it will produce. max_output_tok: the limit it asks for, which the scheduler knows.
      cancel_s: seconds after its arrival at which its client cancels it, if at all.
    """

    id: RequestId
    client: ClientId
    arrival_s: float
    tokens: TokenSequence
    prompt_tok: int
    output_tok: int
    max_output_tok: int
    cache_salt: Hashable = ""
    after: RequestId | None = None
    cancel_s: float | None = None


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


_KNOWN = {"id", "client", "arrival_s", "prompt", "prompt_len", "prefix", "output_len", "max_output", "weight"}


@dataclass
class RequestTrace:
    """A workload read from a file, and the weights of its clients."""

    requests: list[SimulatedRequest] = field(default_factory=list)
    weights: dict[ClientId, float] = field(default_factory=dict)


def read_trace(path: str | Path) -> RequestTrace:
    """Reads a workload from JSON lines.

    A line holds "id", "client", "arrival_s", "output_len" and either "prompt": [ids] or "prompt_len" with an
    optional "prefix": [[key, length], ..]; "max_output" and "weight" are optional. `prompt_len` includes the
    prefix. One bad line rejects the whole file.

    Raises:
      ValueError: a bad line, named with its error, or a file without requests.
    """
    trace = RequestTrace()
    seen: set[RequestId] = set()
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    request, weight = _request(json.loads(line))
                    if request.id in seen:
                        raise ValueError(f"the id {request.id!r} appears twice")
                    if trace.weights.setdefault(request.client, weight) != weight:
                        raise ValueError(
                            f"client {request.client!r} has weight {weight} here "
                            f"and {trace.weights[request.client]} before"
                        )
                except (ValueError, TypeError, KeyError) as why:
                    reason = f"{why} is missing" if isinstance(why, KeyError) else why
                    raise ValueError(f"{path} line {number}: {reason}") from why
                seen.add(request.id)
                trace.requests.append(request)
    if not trace.requests:
        raise ValueError(f"{path} holds no request")
    trace.requests.sort(key=lambda request: request.arrival_s)
    return trace


def _request(row: Any) -> tuple[SimulatedRequest, float]:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if unknown := sorted(set(row) - _KNOWN):
        raise ValueError(f"unknown field {', '.join(unknown)}; known: {', '.join(sorted(_KNOWN))}")
    if ("prompt" in row) == ("prompt_len" in row):
        raise ValueError("give either prompt or prompt_len")
    id, arrival_s = str(row["id"]), _number(row, "arrival_s", 0.0, float)
    output = _number(row, "output_len", 1, int)
    max_output = _number(row, "max_output", 1, int) if "max_output" in row else output
    if max_output < output:
        raise ValueError(f"output_len is {output}, above max_output {max_output}")
    weight = _number(row, "weight", 0.0, float) if "weight" in row else 1.0
    if not weight > 0:
        raise ValueError(f"weight is {weight}; it must be above 0")
    tokens = _prompt(row, id)
    return SimulatedRequest(
        id, str(row["client"]), arrival_s, tokens, len(tokens), output, max_output
    ), weight


def _prompt(row: dict[str, Any], id: RequestId) -> TokenSequence:
    if "prompt" in row:
        if not row["prompt"] or not all(type(t) is int and 0 <= t < 2**31 for t in row["prompt"]):
            raise ValueError("prompt must be a list of at least one token id")
        return TokenIds(row["prompt"])
    total = _number(row, "prompt_len", 1, int)
    prefix = [(str(key), length) for key, length in row.get("prefix", ())]
    if any(type(n) is not int or n < 1 for _, n in prefix):
        raise ValueError("a prefix is a list of [key, length] with lengths of at least 1")
    shared = sum(n for _, n in prefix)
    if shared > total:
        raise ValueError(f"the prefix has {shared} tokens, prompt_len is {total}")
    return SyntheticTokens([*prefix, (("own", id), total - shared)])


def _number(row: dict[str, Any], name: str, minimum: float, kind: Callable[[Any], Any]) -> Any:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a number")
    if kind is int and value != int(value):
        raise ValueError(f"{name} is {value}, not a whole number")
    if value < minimum:
        raise ValueError(f"{name} is {value}; it must be at least {minimum}")
    return kind(value)
