"""What an event log says about fairness: service over time, the largest gap, waiting times.

The log is JSON lines in time order, written alike by engine and simulator:

    {"t": seconds, "event": "arrive|admit|first_token|tokens|finish|cancel|preempt", "id": ..., "client": ...}

`admit` carries "extend" and "hit" (prompt tokens computed and found in the cache); `tokens` is one line
a step with "counts" {client: n} and no id. Every output token is in a `tokens` line, also the one that a
prefill yields. What a preempted request does again is not service: its later `admit` lines count only the
prompt tokens that were not counted yet. `preempt` and `cancel` in the middle of a prefill carry
"prefilled", the tokens of it that were executed or hit.

Service here is weighted tokens: `prompt` a computed token, `cached` a hit, `output` a produced one.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.request import ClientId, RequestId

type Event = dict[str, Any]
EVENTS = ("arrive", "admit", "first_token", "tokens", "finish", "cancel", "preempt")


def read(path: str | Path) -> Iterator[Event]:
    """The events of a log file.

    Raises:
      ValueError: a line that is no event, by its number.
    """
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                if event["event"] not in EVENTS or not isinstance(event["t"], int | float):
                    raise ValueError(f"event {event['event']!r} at {event['t']!r}")
            except (ValueError, KeyError, TypeError) as why:
                raise ValueError(f"{path} line {number} is not an event: {why}") from why
            yield event


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above; nan of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def jain(values: Iterable[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    x = list(values)
    square = sum(v * v for v in x)
    return sum(x) ** 2 / (len(x) * square) if square else 1.0


class GapMeter:
    """The largest |W_f - W_g| over all intervals on which f and g both wait.

    For each pair the running extremes of W_f - W_g since both started to wait: O(pairs) an event.
    """

    def __init__(self):
        self.largest = 0.0
        self.pair: tuple[ClientId, ClientId] | None = None
        self.waiting: dict[ClientId, None] = {}
        self._extremes: dict[tuple[ClientId, ClientId], list[float]] = {}

    def joins(self, client: ClientId, served: dict[ClientId, float]) -> None:
        for other in self.waiting:
            pair = (other, client) if other < client else (client, other)
            self._extremes[pair] = [served[pair[0]] - served[pair[1]]] * 2
        self.waiting[client] = None

    def leaves(self, client: ClientId) -> None:
        del self.waiting[client]
        for other in self.waiting:
            del self._extremes[(other, client) if other < client else (client, other)]

    def moved(self, clients: Iterable[ClientId], served: dict[ClientId, float]) -> None:
        """These clients were served."""
        changed = [client for client in clients if client in self.waiting]
        for client in changed:
            for other in self.waiting:
                if other != client:
                    self._look((other, client) if other < client else (client, other), served)

    def _look(self, pair: tuple[ClientId, ClientId], served: dict[ClientId, float]) -> None:
        low_high = self._extremes[pair]
        now = served[pair[0]] - served[pair[1]]
        if now < low_high[0]:
            low_high[0] = now
        elif now > low_high[1]:
            low_high[1] = now
        else:
            return
        if low_high[1] - low_high[0] > self.largest:
            self.largest, self.pair = low_high[1] - low_high[0], pair


@dataclass
class ServiceReport:
    """What `ServiceMeter` found. Times in seconds, service in weighted tokens.

    Attributes:
      service: total by client. curve: (time, total so far) by client, one point a change.
      gap, gap_pair: the largest service gap between two clients that both waited, and whose it was.
      gap_curve: (time, largest gap so far).
      ttft_s, e2e_s: arrival to first token, and to the end, of every request by client.
      hit_rate: share of prompt tokens found in the cache.
    """

    service: dict[ClientId, float]
    curve: dict[ClientId, list[tuple[float, float]]]
    gap: float
    gap_pair: tuple[ClientId, ClientId] | None
    gap_curve: list[tuple[float, float]]
    ttft_s: dict[ClientId, list[float]]
    e2e_s: dict[ClientId, list[float]]
    prompt_tok: int
    hit_tok: int
    output_tok: int
    finished: int
    cancelled: int
    preempted: int
    duration_s: float

    @property
    def hit_rate(self) -> float:
        return self.hit_tok / self.prompt_tok if self.prompt_tok else 0.0

    @property
    def jain(self) -> float:
        return jain(self.service.values())

    def table(self) -> dict[str, Any]:
        """Everything but the curves as plain values: what a command prints with --json."""
        wait = {
            client: {
                f"{name}_p{p}_s": percentile(seconds.get(client, ()), p)
                for name, seconds in (("ttft", self.ttft_s), ("e2e", self.e2e_s))
                for p in (50, 90, 99)
            }
            for client in self.service
        }
        seconds = self.duration_s or math.nan
        return {
            "duration_s": self.duration_s,
            "finished": self.finished,
            "cancelled": self.cancelled,
            "preempted": self.preempted,
            "output_tok_per_s": self.output_tok / seconds,
            "tok_per_s": (self.prompt_tok + self.output_tok) / seconds,
            "hit_rate": self.hit_rate,
            "gap": self.gap,
            "gap_pair": self.gap_pair,
            "jain": self.jain,
            "service": self.service,
            "clients": wait,
        }


@dataclass(slots=True)
class _Life:
    """One live request: `prompt_tok` once admitted, of which `extend` and `hit` are counted as service.

    `done` of these are from admissions before the present one.
    """

    client: ClientId
    arrival_s: float
    waits: bool = False
    began: bool = False
    prompt_tok: int = 0
    extend: int = 0
    hit: int = 0
    done: int = 0


@dataclass
class ServiceMeter:
    """Takes events one at a time, keeps sums, and never needs the whole log."""

    prompt: float = 1.0
    output: float = 2.0
    cached: float = 1.0
    curves: bool = True
    served: dict[ClientId, float] = field(default_factory=dict)

    def __post_init__(self):
        self._gap = GapMeter()
        self._waiting_of: dict[ClientId, int] = {}
        self._live: dict[RequestId, _Life] = {}
        self._report = ServiceReport({}, {}, 0.0, None, [], {}, {}, 0, 0, 0, 0, 0, 0, 0.0)
        self._start_s: float | None = None

    def take(self, event: Event) -> None:
        now_s = event["t"]
        if self._start_s is None:
            self._start_s = now_s
        self._report.duration_s = now_s - self._start_s
        getattr(self, "_" + event["event"])(now_s, event)

    def report(self) -> ServiceReport:
        self._report.service = dict(self.served)
        self._report.gap, self._report.gap_pair = self._gap.largest, self._gap.pair
        return self._report

    def _arrive(self, now_s: float, event: Event) -> None:
        life = self._live[event["id"]] = _Life(event["client"], now_s)
        self.served.setdefault(life.client, 0.0)
        self._wait(life)

    def _admit(self, now_s: float, event: Event) -> None:
        life = self._live[event["id"]]
        self._unwait(life)  # an interval on which it waits ends before what ends it
        life.prompt_tok = life.prompt_tok or event["extend"] + event["hit"]
        new = life.prompt_tok - life.extend - life.hit
        extend = min(new, event["extend"])
        self._count(now_s, life, extend, new - extend)

    def _first_token(self, now_s: float, event: Event) -> None:
        life = self._live[event["id"]]
        if not life.began:
            life.began = True
            self._report.ttft_s.setdefault(life.client, []).append(now_s - life.arrival_s)

    def _tokens(self, now_s: float, event: Event) -> None:
        counts = event["counts"]
        self._report.output_tok += sum(counts.values())
        self._serve(now_s, {client: self.output * count for client, count in counts.items()})

    def _finish(self, now_s: float, event: Event) -> None:
        life = self._live.pop(event["id"])
        self._report.e2e_s.setdefault(life.client, []).append(now_s - life.arrival_s)
        self._report.finished += 1

    def _cancel(self, now_s: float, event: Event) -> None:
        life = self._live.pop(event["id"])
        self._uncount(now_s, life, event)
        if life.waits:
            self._unwait(life)
        self._report.cancelled += 1

    def _preempt(self, now_s: float, event: Event) -> None:
        life = self._live[event["id"]]
        self._uncount(now_s, life, event)
        self._wait(life)
        self._report.preempted += 1

    def _count(self, now_s: float, life: _Life, extend: int, hit: int) -> None:
        life.extend += extend
        life.hit += hit
        self._report.prompt_tok += extend + hit
        self._report.hit_tok += hit
        if extend or hit:
            self._serve(now_s, {life.client: self.prompt * extend + self.cached * hit})

    def _uncount(self, now_s: float, life: _Life, event: Event) -> None:
        """Takes back what an admission announced and a step did not execute."""
        executed = max(life.done, event.get("prefilled", life.prompt_tok))
        hit = min(life.hit, executed)
        self._count(now_s, life, min(life.extend, executed - hit) - life.extend, hit - life.hit)
        life.done = life.extend + life.hit

    def _wait(self, life: _Life) -> None:
        life.waits = True
        count = self._waiting_of.get(life.client, 0)
        self._waiting_of[life.client] = count + 1
        if not count:
            self._gap.joins(life.client, self.served)

    def _unwait(self, life: _Life) -> None:
        life.waits = False
        self._waiting_of[life.client] -= 1
        if not self._waiting_of[life.client]:
            self._gap.leaves(life.client)

    def _serve(self, now_s: float, amount_of: dict[ClientId, float]) -> None:
        before = self._gap.largest
        for client, amount in amount_of.items():
            self.served[client] += amount
            if self.curves:
                self._report.curve.setdefault(client, []).append((now_s, self.served[client]))
        self._gap.moved(amount_of, self.served)
        if self.curves and self._gap.largest > before:
            self._report.gap_curve.append((now_s, self._gap.largest))


def report(
    events: Iterable[Event], *, prompt: float = 1.0, output: float = 2.0, cached: float = 1.0
) -> ServiceReport:
    """Reads a whole log. `cached=0` measures what DLPM bills: a hit is free."""
    meter = ServiceMeter(prompt, output, cached)
    for event in events:
        meter.take(event)
    return meter.report()
