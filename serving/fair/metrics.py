"""Fairness metrics of an event log: service over time, gaps, lags and pauses, latencies.

The log is JSON lines in time order, in the same format from engine and simulator:

    {"t": seconds, "event": "arrive|admit|first_token|tokens|finish|cancel|preempt", "id": ..., "client": ...}
    {"t": seconds, "event": "weight", "client": ..., "weight": ...}

`admit` has "extend" and "hit": prompt tokens computed and found in the cache. `tokens` is one line per step,
with "counts" {client: n} and no id. Every output token is in a `tokens` line, including the one that a
prefill yields. Recomputation of a preempted request is not service: its later `admit` lines count only the
prompt tokens that were not counted before. `preempt` and `cancel` during a prefill have "prefilled": its
tokens that were executed or hit. `finish` has "output": the request's output tokens. `weight` changes a
client's weight from then on; before it, weights are those given to the meter.

Service is measured in weighted tokens, with the weights `prompt` (computed), `cached` (hit) and `output`.
Gaps are of service divided by the client's weight.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.fair.admission_pause import AdmissionPauseMeter
from serving.fair.fluid_lag import FluidLagMeter
from serving.fair.gap_meter import GapMeter
from serving.fair.service_report import LatencyTarget, ServiceReport
from serving.fair.statistics import jain, percentile
from serving.request import ClientId, RequestId

__all__ = ["EVENTS", "GapMeter", "LatencyTarget", "ServiceMeter", "ServiceReport", "jain", "percentile"]

type Event = dict[str, Any]
EVENTS = ("arrive", "admit", "first_token", "tokens", "finish", "cancel", "preempt", "weight")


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
    ttft_s: float = 0.0


@dataclass
class ServiceMeter:
    """Computes a `ServiceReport` from events one at a time, without keeping the log.

    Attributes:
      prompt, output, cached: weights of a computed prompt token, an output token and a cached prompt token.
      curves: whether to record service and gap over time.
      weights: share of each client; 1 where not named.
      target: see `LatencyTarget`.
      group_of: the name under which a client is measured, e.g. its program; itself where not named.
      served: service so far by client.
    """

    prompt: float = 1.0
    output: float = 2.0
    cached: float = 1.0
    curves: bool = True
    weights: Mapping[ClientId, float] = field(default_factory=dict)
    target: LatencyTarget = field(default_factory=LatencyTarget)
    group_of: Mapping[ClientId, ClientId] = field(default_factory=dict)
    served: dict[ClientId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gap, self._pause = GapMeter(), AdmissionPauseMeter()
        self._fluid = FluidLagMeter(self.weights)
        self._weight_of = dict(self.weights)
        self._per_weight: dict[ClientId, float] = {}  # service per weight so far
        self._waiting_of: dict[ClientId, int] = {}
        self._live: dict[RequestId, _LiveRequest] = {}
        self._report = ServiceReport(target=self.target)
        self._now_s = 0.0
        self._start_s: float | None = None
        self._handlers: dict[str, Callable[[float, Event], None]] = {
            "arrive": self._arrive,
            "admit": self._admit,
            "first_token": self._first_token,
            "tokens": self._tokens,
            "finish": self._finish,
            "cancel": self._cancel,
            "preempt": self._preempt,
            "weight": self._weight,
        }

    def take(self, event: Event) -> None:
        """Adds the next event of the log."""
        now_s = event["t"]
        self._now_s = now_s
        if self._start_s is None:
            self._start_s = now_s
        self._report.duration_s = now_s - self._start_s
        self._handlers[event["event"]](now_s, event)

    def report(self) -> ServiceReport:
        """The figures up to the last event."""
        found = self._report
        found.service = dict(self.served)
        found.weights = {client: weight for client, weight in self._weight_of.items() if weight != 1}
        found.gap, found.gap_pair, found.gap_left_out = (
            self._gap.largest,
            self._gap.pair,
            self._gap.left_out,
        )
        found.lag, found.jain = self._fluid.lags(), self._fluid.jain()
        found.pause_s = dict(self._pause.until(self._now_s))
        return found

    def _arrive(self, now_s: float, event: Event) -> None:
        client = self.group_of.get(event["client"], event["client"])
        request = self._live[event["id"]] = _LiveRequest(client, now_s)
        self.served.setdefault(client, 0.0)
        self._per_weight.setdefault(client, 0.0)
        self._report.arrived[client] = self._report.arrived.get(client, 0) + 1
        self._fluid.arrive(client)
        self._start_waiting(request)

    def _admit(self, now_s: float, event: Event) -> None:
        request = self._live[event["id"]]
        self._pause.admit(request.client, now_s)
        self._stop_waiting(request)  # first, so that the admission itself is outside the waiting interval
        request.prompt_tok = request.prompt_tok or event["extend"] + event["hit"]
        new_tok = request.prompt_tok - request.extend_tok - request.hit_tok
        extend_tok = min(new_tok, event["extend"])
        self._count(now_s, request, extend_tok, new_tok - extend_tok)

    def _first_token(self, now_s: float, event: Event) -> None:
        request = self._live[event["id"]]
        if not request.has_first_token:
            request.has_first_token, request.ttft_s = True, now_s - request.arrival_s
            self._report.ttft_s.setdefault(request.client, []).append(request.ttft_s)

    def _tokens(self, now_s: float, event: Event) -> None:
        counts = event["counts"]
        self._report.output_tok += sum(counts.values())
        if self.group_of:
            grouped: dict[ClientId, int] = {}
            for client, count in counts.items():
                group = self.group_of.get(client, client)
                grouped[group] = grouped.get(group, 0) + count
            counts = grouped
        self._serve(now_s, {client: self.output * count for client, count in counts.items()})

    def _finish(self, now_s: float, event: Event) -> None:
        request = self._live.pop(event["id"])
        client, e2e_s = request.client, now_s - request.arrival_s
        self._report.e2e_s.setdefault(client, []).append(e2e_s)
        self._report.finished += 1
        self._fluid.end(client)
        tpot_s = 0.0
        if (output_tok := event.get("output", 0)) > 1:
            tpot_s = (e2e_s - request.ttft_s) / (output_tok - 1)
            self._report.tpot_s.setdefault(client, []).append(tpot_s)
        if self.target.met(request.ttft_s, tpot_s):
            self._report.in_target[client] = self._report.in_target.get(client, 0) + 1

    def _cancel(self, now_s: float, event: Event) -> None:
        request = self._live.pop(event["id"])
        self._settle(now_s, request, event)
        if request.waits:
            self._stop_waiting(request)
        self._fluid.end(request.client)
        self._report.cancelled += 1

    def _preempt(self, now_s: float, event: Event) -> None:
        request = self._live[event["id"]]
        self._settle(now_s, request, event)
        self._start_waiting(request)
        self._report.preempted += 1

    def _weight(self, now_s: float, event: Event) -> None:
        client = self.group_of.get(event["client"], event["client"])
        self._weight_of[client] = event["weight"]
        self._fluid.set_weight(client, event["weight"])

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
            self._gap.join(request.client, self._per_weight)
            self._fluid.join(request.client)
            self._pause.join(request.client, self._now_s)

    def _stop_waiting(self, request: _LiveRequest) -> None:
        request.waits = False
        self._waiting_of[request.client] -= 1
        if not self._waiting_of[request.client]:
            self._gap.leave(request.client)
            self._fluid.leave(request.client)
            self._pause.leave(request.client, self._now_s)

    def _serve(self, now_s: float, amount_of: dict[ClientId, float]) -> None:
        previous = self._gap.largest
        for client, amount in amount_of.items():
            self.served[client] += amount
            self._per_weight[client] += amount / self._weight_of.get(client, 1.0)
            if self.curves:
                self._report.curve.setdefault(client, []).append((now_s, self.served[client]))
        self._fluid.serve(amount_of)
        self._gap.update(amount_of, self._per_weight)
        if self.curves and self._gap.largest > previous:
            self._report.gap_curve.append((now_s, self._gap.largest))


def report(
    events: Iterable[Event], *, prompt: float = 1.0, output: float = 2.0, cached: float = 1.0, **more: Any
) -> ServiceReport:
    """The report of a whole log. `cached=0` measures what DLPM charges: a hit is free.

    `more`: further attributes of `ServiceMeter`.
    """
    meter = ServiceMeter(prompt, output, cached, **more)
    for event in events:
        meter.take(event)
    return meter.report()
