"""Fairness metrics of an event log: service over time, the largest service gap, latencies.

The log is JSON lines in time order, in the same format from engine and simulator:

    {"t": seconds, "event": "arrive|admit|first_token|tokens|finish|cancel|preempt", "id": ..., "client": ...}

`admit` has "extend" and "hit": prompt tokens computed and found in the cache. `tokens` is one line per step,
with "counts" {client: n} and no id. Every output token is in a `tokens` line, including the one that a
prefill yields. Recomputation of a preempted request is not service: its later `admit` lines count only the
prompt tokens that were not counted before. `preempt` and `cancel` during a prefill have "prefilled": its
tokens that were executed or hit.

Service is measured in weighted tokens, with the weights `prompt` (computed), `cached` (hit) and `output`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.request import ClientId, RequestId

type Event = dict[str, Any]
EVENTS = ("arrive", "admit", "first_token", "tokens", "finish", "cancel", "preempt")


def read(path: str | Path) -> Iterator[Event]:
    """Yields the events of a log file.

    Raises:
      ValueError: a line is not an event; the message names its number.
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
    """The smallest value such that at least `percent` % of all are not above it; nan if there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index: 1 if all n values are equal, 1/n if all but one are zero."""
    x = list(values)
    square = sum(v * v for v in x)
    return sum(x) ** 2 / (len(x) * square) if square else 1.0


class GapMeter:
    """Measures the largest |W_f - W_g| over all intervals in which clients f and g both wait.

    Keeps for each pair the extremes of W_f - W_g since both started to wait: O(pairs) per event.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self.pair: tuple[ClientId, ClientId] | None = None
        self.waiting: dict[ClientId, None] = {}
        self._extremes: dict[tuple[ClientId, ClientId], list[float]] = {}

    def join(self, client: ClientId, served: dict[ClientId, float]) -> None:
        """The client starts to wait. `served`: service of every client so far."""
        for other in self.waiting:
            pair = _pair(client, other)
            self._extremes[pair] = [served[pair[0]] - served[pair[1]]] * 2
        self.waiting[client] = None

    def leave(self, client: ClientId) -> None:
        """The client has no waiting request left."""
        del self.waiting[client]
        for other in self.waiting:
            del self._extremes[_pair(client, other)]

    def update(self, clients: Iterable[ClientId], served: dict[ClientId, float]) -> None:
        """The service of these clients has changed."""
        changed = [client for client in clients if client in self.waiting]
        for client in changed:
            for other in self.waiting:
                if other != client:
                    self._update_pair(_pair(client, other), served)

    def _update_pair(self, pair: tuple[ClientId, ClientId], served: dict[ClientId, float]) -> None:
        extremes = self._extremes[pair]
        difference = served[pair[0]] - served[pair[1]]
        if difference < extremes[0]:
            extremes[0] = difference
        elif difference > extremes[1]:
            extremes[1] = difference
        else:
            return
        gap = extremes[1] - extremes[0]
        if gap > self.largest:
            self.largest, self.pair = gap, pair


def _pair(f: ClientId, g: ClientId) -> tuple[ClientId, ClientId]:
    return (g, f) if g < f else (f, g)


@dataclass
class ServiceReport:
    """The result of `ServiceMeter`. Times in seconds, service in weighted tokens.

    Attributes:
      service: total by client.
      curve: (time, total so far) by client, one point per change.
      gap, gap_pair: the largest service gap between two clients that both waited, and these clients.
      gap_curve: (time, largest gap so far).
      ttft_s, e2e_s: time from arrival to first token and to finish, of every request by client.
      prompt_tok, hit_tok, output_tok: totals; recomputed prompt tokens are not counted again.
      hit_rate: share of prompt tokens found in the cache.
      jain: Jain's index of the clients' service.
    """

    service: dict[ClientId, float] = field(default_factory=dict)
    curve: dict[ClientId, list[tuple[float, float]]] = field(default_factory=dict)
    gap: float = 0.0
    gap_pair: tuple[ClientId, ClientId] | None = None
    gap_curve: list[tuple[float, float]] = field(default_factory=list)
    ttft_s: dict[ClientId, list[float]] = field(default_factory=dict)
    e2e_s: dict[ClientId, list[float]] = field(default_factory=dict)
    prompt_tok: int = 0
    hit_tok: int = 0
    output_tok: int = 0
    finished: int = 0
    cancelled: int = 0
    preempted: int = 0
    duration_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        return self.hit_tok / self.prompt_tok if self.prompt_tok else 0.0

    @property
    def jain(self) -> float:
        return jain(self.service.values())

    def table(self) -> dict[str, Any]:
        """Everything except the curves as plain values: the output of a command with --json."""
        latency = {
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
            "clients": latency,
        }


@dataclass(slots=True)
class _LiveRequest:
    """One live request.

    Attributes:
      prompt_tok: prompt tokens; 0 before the first admission.
      extend_tok, hit_tok: the part of these counted as service.
      executed_tok: the part counted by admissions before the current one.
    """

    client: ClientId
    arrival_s: float
    waits: bool = False
    has_first_token: bool = False
    prompt_tok: int = 0
    extend_tok: int = 0
    hit_tok: int = 0
    executed_tok: int = 0


@dataclass
class ServiceMeter:
    """Computes a `ServiceReport` from events one at a time, without keeping the log.

    Attributes:
      prompt, output, cached: weights of a computed prompt token, an output token and a cached prompt token.
      curves: whether to record service and gap over time.
      served: service so far by client.
    """

    prompt: float = 1.0
    output: float = 2.0
    cached: float = 1.0
    curves: bool = True
    served: dict[ClientId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gap = GapMeter()
        self._waiting_of: dict[ClientId, int] = {}
        self._live: dict[RequestId, _LiveRequest] = {}
        self._report = ServiceReport()
        self._start_s: float | None = None
        self._handlers: dict[str, Callable[[float, Event], None]] = {
            "arrive": self._arrive,
            "admit": self._admit,
            "first_token": self._first_token,
            "tokens": self._tokens,
            "finish": self._finish,
            "cancel": self._cancel,
            "preempt": self._preempt,
        }

    def take(self, event: Event) -> None:
        """Adds the next event of the log."""
        now_s = event["t"]
        if self._start_s is None:
            self._start_s = now_s
        self._report.duration_s = now_s - self._start_s
        self._handlers[event["event"]](now_s, event)

    def report(self) -> ServiceReport:
        """The figures up to the last event."""
        self._report.service = dict(self.served)
        self._report.gap, self._report.gap_pair = self._gap.largest, self._gap.pair
        return self._report

    def _arrive(self, now_s: float, event: Event) -> None:
        request = self._live[event["id"]] = _LiveRequest(event["client"], now_s)
        self.served.setdefault(request.client, 0.0)
        self._start_waiting(request)

    def _admit(self, now_s: float, event: Event) -> None:
        request = self._live[event["id"]]
        self._stop_waiting(request)  # first, so that the admission itself is outside the waiting interval
        request.prompt_tok = request.prompt_tok or event["extend"] + event["hit"]
        new_tok = request.prompt_tok - request.extend_tok - request.hit_tok
        extend_tok = min(new_tok, event["extend"])
        self._count(now_s, request, extend_tok, new_tok - extend_tok)

    def _first_token(self, now_s: float, event: Event) -> None:
        request = self._live[event["id"]]
        if not request.has_first_token:
            request.has_first_token = True
            self._report.ttft_s.setdefault(request.client, []).append(now_s - request.arrival_s)

    def _tokens(self, now_s: float, event: Event) -> None:
        counts = event["counts"]
        self._report.output_tok += sum(counts.values())
        self._serve(now_s, {client: self.output * count for client, count in counts.items()})

    def _finish(self, now_s: float, event: Event) -> None:
        request = self._live.pop(event["id"])
        self._report.e2e_s.setdefault(request.client, []).append(now_s - request.arrival_s)
        self._report.finished += 1

    def _cancel(self, now_s: float, event: Event) -> None:
        request = self._live.pop(event["id"])
        self._settle(now_s, request, event)
        if request.waits:
            self._stop_waiting(request)
        self._report.cancelled += 1

    def _preempt(self, now_s: float, event: Event) -> None:
        request = self._live[event["id"]]
        self._settle(now_s, request, event)
        self._start_waiting(request)
        self._report.preempted += 1

    def _count(self, now_s: float, request: _LiveRequest, extend_tok: int, hit_tok: int) -> None:
        request.extend_tok += extend_tok
        request.hit_tok += hit_tok
        self._report.prompt_tok += extend_tok + hit_tok
        self._report.hit_tok += hit_tok
        if extend_tok or hit_tok:
            self._serve(now_s, {request.client: self.prompt * extend_tok + self.cached * hit_tok})

    def _settle(self, now_s: float, request: _LiveRequest, event: Event) -> None:
        """Subtracts the tokens that an admission announced and no step executed."""
        executed_tok = max(request.executed_tok, event.get("prefilled", request.prompt_tok))
        hit_tok = min(request.hit_tok, executed_tok)
        extend_tok = min(request.extend_tok, executed_tok - hit_tok)
        self._count(now_s, request, extend_tok - request.extend_tok, hit_tok - request.hit_tok)
        request.executed_tok = request.extend_tok + request.hit_tok

    def _start_waiting(self, request: _LiveRequest) -> None:
        request.waits = True
        count = self._waiting_of.get(request.client, 0)
        self._waiting_of[request.client] = count + 1
        if not count:
            self._gap.join(request.client, self.served)

    def _stop_waiting(self, request: _LiveRequest) -> None:
        request.waits = False
        self._waiting_of[request.client] -= 1
        if not self._waiting_of[request.client]:
            self._gap.leave(request.client)

    def _serve(self, now_s: float, amount_of: dict[ClientId, float]) -> None:
        previous = self._gap.largest
        for client, amount in amount_of.items():
            self.served[client] += amount
            if self.curves:
                self._report.curve.setdefault(client, []).append((now_s, self.served[client]))
        self._gap.update(amount_of, self.served)
        if self.curves and self._gap.largest > previous:
            self._report.gap_curve.append((now_s, self._gap.largest))


def report(
    events: Iterable[Event], *, prompt: float = 1.0, output: float = 2.0, cached: float = 1.0
) -> ServiceReport:
    """The report of a whole log. `cached=0` measures what DLPM charges: a hit is free."""
    meter = ServiceMeter(prompt, output, cached)
    for event in events:
        meter.take(event)
    return meter.report()
