"""What arrives when: jobs, random sources of them, and traces read from a file."""

import json
import math
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from serving.kvcache.tokens import TokenIds, TokenSequence
from serving.request import ClientId, RequestId
from serving.sim.synthetic_tokens import SyntheticTokens, TokenRun


@dataclass(slots=True)
class SimulatedRequest:
    """One request of a workload: what a `Request` is, and what will come of it.

    Attributes:
      arrival_s: when it arrives; if `after` is set, how long after that job's end.
      tokens: the prompt, possibly followed by the output (which the prefix cache then keeps).
      output_tok: tokens it will produce. max_output_tok: how many it might, as far as anyone knows.
      cancel_s: how long after its arrival its client gives up, if it does.
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
"""A number, (low, high) inclusive, or ("lognormal", median, sigma, most)."""


def draw(length: Length, rng: random.Random) -> int:
    match length:
        case int():
            return length
        case (int(low), int(high)):
            return rng.randint(low, high)
        case ("lognormal", median, sigma, most):
            return min(most, max(1, round(rng.lognormvariate(math.log(median), sigma))))
    raise ValueError(f"length {length!r} is no number, (low, high) or ('lognormal', median, sigma, most)")


@dataclass
class Source:
    """Requests of one client.

    Attributes:
      rate: requests a second; `rate_end` if it changes linearly until `end_s`.
      arrivals: `even` has gaps of 1/rate and a random phase, `poisson` exponential gaps, `burst` all at once
        at `start_s` (rate * duration of them).
      on_s, off_s: sends for `on_s`, then pauses for `off_s`, if these are not 0; what falls in a pause is
      dropped.
      pause_first: begins with the pause.
      prompt, output: lengths in tokens, prefix not counted.
      max_output: what it asks for at most; None: exactly what it will produce.
      prefix: shared beginnings, each (name, length); one is drawn for each request.
      popularity: weights of the prefixes; equal if empty.
      max_output_factor: asks for so many times what it will produce.
      cancels: share of requests whose client gives up, after `cancel_s` drawn uniformly up to this.
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
                f"client {self.client!r} sends {self.rate} requests a second "
                f"from {self.start_s} s to {self.end_s} s"
            )
        if self.arrivals not in ("even", "poisson", "burst"):
            raise ValueError(
                f"client {self.client!r} has arrivals={self.arrivals!r}; known: even, poisson, burst"
            )

    def jobs(self, rng: random.Random, tag: str = "") -> Iterator[SimulatedRequest]:
        """`tag` keeps apart the ids of several sources of one client."""
        for i, at_s in enumerate(self._times(rng)):
            prompt, output = max(1, draw(self.prompt, rng)), max(1, draw(self.output, rng))
            id = f"{self.client}-{tag}{i}"
            runs: list[TokenRun] = []
            if self.prefix:
                runs.append(rng.choices(self.prefix, self.popularity or None)[0])
            runs.append((id, prompt))
            most = output if self.max_output is None else max(output, self.max_output)
            gives_up = rng.uniform(0, self.cancel_s) if rng.random() < self.cancels else None
            total = sum(n for _, n in runs)
            yield SimulatedRequest(
                id, self.client, at_s, SyntheticTokens(runs), total, output, most, cancel_s=gives_up
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
    """All jobs in order of arrival. Each source has its own random numbers, so one does not shift another."""
    jobs: list[SimulatedRequest] = []
    for i, source in enumerate(sources):
        source.check()
        jobs += source.jobs(random.Random(f"{seed}/{i}/{source.client}"), f"{i}." if i else "")
    return sorted(jobs, key=lambda job: job.arrival_s)


_KNOWN = {"id", "client", "arrival_s", "prompt", "prompt_len", "prefix", "output_len", "max_output", "weight"}


@dataclass
class RequestTrace:
    """A workload read from a file, and the weights of its clients."""

    jobs: list[SimulatedRequest] = field(default_factory=list)
    weights: dict[ClientId, float] = field(default_factory=dict)


def read_trace(path: str | Path) -> RequestTrace:
    """Reads JSON lines of "id", "client", "arrival_s", "output_len", either "prompt": [ids] or "prompt_len"
    with perhaps "prefix": [[key, length], ..], and perhaps "max_output" and "weight".

    `prompt_len` counts the prefix. Nothing is returned of a file with a bad line.

    Raises:
      ValueError: names the line and what is wrong with it.
    """
    trace = RequestTrace()
    seen: set[RequestId] = set()
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    job, weight = _job(json.loads(line))
                    if job.id in seen:
                        raise ValueError(f"the id {job.id!r} is there already")
                    if trace.weights.setdefault(job.client, weight) != weight:
                        raise ValueError(
                            f"client {job.client!r} has weight {weight} here "
                            f"and {trace.weights[job.client]} before"
                        )
                except (ValueError, TypeError, KeyError) as why:
                    reason = f"{why} is missing" if isinstance(why, KeyError) else why
                    raise ValueError(f"{path} line {number}: {reason}") from why
                seen.add(job.id)
                trace.jobs.append(job)
    if not trace.jobs:
        raise ValueError(f"{path} holds no request")
    trace.jobs.sort(key=lambda job: job.arrival_s)
    return trace


def _job(row: Any) -> tuple[SimulatedRequest, float]:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if unknown := sorted(set(row) - _KNOWN):
        raise ValueError(f"unknown field {', '.join(unknown)}; known: {', '.join(sorted(_KNOWN))}")
    if ("prompt" in row) == ("prompt_len" in row):
        raise ValueError("give either prompt or prompt_len")
    id, arrival_s = str(row["id"]), _number(row, "arrival_s", 0.0, float)
    output = _number(row, "output_len", 1, int)
    most = _number(row, "max_output", 1, int) if "max_output" in row else output
    if most < output:
        raise ValueError(f"output_len is {output}, above max_output {most}")
    weight = _number(row, "weight", 0.0, float) if "weight" in row else 1.0
    if not weight > 0:
        raise ValueError(f"weight is {weight}; it must be above 0")
    tokens = _prompt(row, id)
    return SimulatedRequest(id, str(row["client"]), arrival_s, tokens, len(tokens), output, most), weight


def _prompt(row: dict[str, Any], id: RequestId) -> TokenSequence:
    if "prompt" in row:
        if not row["prompt"] or not all(type(t) is int and 0 <= t < 2**31 for t in row["prompt"]):
            raise ValueError("prompt must be a list of at least one token id")
        return TokenIds(row["prompt"])
    total = _number(row, "prompt_len", 1, int)
    runs = [(str(key), length) for key, length in row.get("prefix", ())]
    if any(type(n) is not int or n < 1 for _, n in runs):
        raise ValueError("a prefix is a list of [key, length] with lengths of at least 1")
    shared = sum(n for _, n in runs)
    if shared > total:
        raise ValueError(f"the prefix has {shared} tokens, prompt_len is {total}")
    return SyntheticTokens([*runs, (("own", id), total - shared)])


def _number(row: dict[str, Any], name: str, least: float, kind: Callable[[Any], Any]) -> Any:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a number")
    if kind is int and value != int(value):
        raise ValueError(f"{name} is {value}, not a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
    return kind(value)
