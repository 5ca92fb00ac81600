"""Service rates and differences as the authors of VTC compute them.

They spread the cost of a finished request evenly over the time from its first token to its end. The event
log is more exact (see `serving.fair.metrics`), but only figures computed in the same way can be compared.

Source: `fair_bench/plot/visualize.py` of the VTC artifact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pvariance

import numpy as np

from serving.fair.metrics import Event
from serving.request import ClientId, RequestId
from serving.sim.workload import SimulatedRequest

WINDOW_S = 60.0
WARM_UP_S = 30.0


@dataclass(slots=True)
class ServedRequest:
    """A finished request. `cost` is in weighted tokens."""

    client: ClientId
    arrival_s: float
    first_s: float
    end_s: float
    cost: float

    def within(self, start_s: float, end_s: float) -> float:
        """The part of its cost in a window, spread evenly over the time after its first token."""
        duration_s = self.end_s - self.first_s
        if duration_s <= 0:
            return self.cost if start_s <= self.end_s < end_s else 0.0
        return self.cost * max(0.0, min(end_s, self.end_s) - max(start_s, self.first_s)) / duration_s


@dataclass
class RequestRecords:
    """Collects finished requests from an event log; `take` is called with every event.

    `group_of`: see `serving.fair.metrics.ServiceMeter`. `cost_of(request, hit_tok)` is the cost of a request
    in weighted tokens, as its policy bills it.
    """

    requests: dict[RequestId, SimulatedRequest]
    cost_of: Callable[[SimulatedRequest, int], float] = lambda request, hit_tok: (
        request.prompt_tok + 2.0 * request.output_tok
    )
    served: list[ServedRequest] = field(default_factory=list)
    group_of: Mapping[ClientId, ClientId] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._arrival_s: dict[RequestId, float] = {}
        self._first_s: dict[RequestId, float] = {}
        self._hit: dict[RequestId, int] = {}

    def take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "first_token":
            self._first_s.setdefault(event["id"], event["t"])
        elif kind == "arrive":
            self._arrival_s.setdefault(event["id"], event["t"])  # one that lost its worker arrives again
        elif kind == "admit":
            self._hit.setdefault(event["id"], event["hit"])
        elif kind == "finish":
            self._finish(event["id"], event["t"])

    def _finish(self, id: RequestId, now_s: float) -> None:
        request = self.requests[id]
        first_s, hit = self._first_s.pop(id), self._hit.pop(id)
        cost = self.cost_of(request, hit)
        client = self.group_of.get(request.client, request.client)
        self.served.append(ServedRequest(client, self._arrival_s.pop(id), first_s, now_s, cost))

    def by_client(self) -> dict[ClientId, list[ServedRequest]]:
        served_of: dict[ClientId, list[ServedRequest]] = {}
        for request in self.served:
            served_of.setdefault(request.client, []).append(request)
        return dict(sorted(served_of.items()))


class ClientCurves:
    """The service of every client over time, from the times and costs of its finished requests."""

    def __init__(self, records: RequestRecords) -> None:
        self._requests = {
            client: np.array([(r.arrival_s, r.first_s, r.end_s, r.cost) for r in served]).T
            for client, served in records.by_client().items()
        }
        self.clients = list(self._requests)

    def within(self, client: ClientId, start_s: float, ends_s: Sequence[float]) -> np.ndarray:
        """The part of its cost in [start_s, end) for each end, as `ServedRequest.within` has it."""
        _, first, end, cost = self._requests[client]
        ends = np.asarray(ends_s)[:, None]
        total = np.zeros(len(ends))
        for at in range(0, len(first), 4096):  # a bounded number of times x requests at once
            begins, stops, price = (column[at : at + 4096] for column in (first, end, cost))
            duration = stops - begins
            spread = duration > 0
            overlap = np.minimum(ends, stops) - np.maximum(start_s, begins)
            part = np.clip(overlap, 0, None) / np.where(spread, duration, 1.0)
            at_once = (stops >= start_s) & (stops < ends)
            total += (price * np.where(spread, part, at_once)).sum(axis=1)
        return total

    def rate(self, client: ClientId, start_s: float, end_s: float) -> float:
        """Weighted tokens per second in a window."""
        return float(self.within(client, start_s, [end_s])[0]) / (end_s - start_s)

    def demand(self, client: ClientId, start_s: float, end_s: float) -> float:
        """Weighted tokens per second of the requests that arrive in a window."""
        arrival, _, _, cost = self._requests[client]
        return float(cost[(arrival >= start_s) & (arrival < end_s)].sum()) / (end_s - start_s)


def service_difference(
    records: RequestRecords, duration_s: float, weights: Mapping[ClientId, float] | None = None
) -> dict[str, float]:
    """Table 2 of the VTC paper: a client's share is limited by its demand.

    At 19 times x, over [x, x + 60 s]: sum over clients of min(best rate - its rate, |its demand - its rate|),
    all per unit of weight. nan where requests arrive for less than the warm-up.
    """
    if duration_s <= WARM_UP_S or not records.served:
        return {"max_diff": math.nan, "avg_diff": math.nan, "var_diff": math.nan}
    curves, weights = ClientCurves(records), weights or {}
    differences = []
    for k in range(1, 20):
        at_s = k * (duration_s - WARM_UP_S) / 20
        end_s = at_s + WINDOW_S
        rates = {c: curves.rate(c, at_s, end_s) / weights.get(c, 1.0) for c in curves.clients}
        best = max(rates.values(), default=0.0)
        differences.append(
            sum(
                min(best - rate, abs(curves.demand(c, at_s, end_s) / weights.get(c, 1.0) - rate))
                for c, rate in rates.items()
            )
        )
    return {
        "max_diff": max(differences),
        "avg_diff": fmean(differences),
        "var_diff": pvariance(differences),
    }


def accumulated_gap(
    records: RequestRecords,
    start_s: float,
    end_s: float,
    points: int = 200,
    weights: Mapping[ClientId, float] | None = None,
) -> list[tuple[float, float]]:
    """Figures 3, 7, 8: (time, largest minus smallest service accumulated by a client since `start_s`).

    Per unit of weight. Empty if there is no time between the two.
    """
    if end_s <= start_s:
        return []
    curves, weights = ClientCurves(records), weights or {}
    times = [start_s + (end_s - start_s) * k / points for k in range(points + 1)]
    if not curves.clients:
        return [(at_s, 0.0) for at_s in times]
    sums = [curves.within(c, start_s, times) / weights.get(c, 1.0) for c in curves.clients]
    gaps = np.max(sums, axis=0) - np.min(sums, axis=0)
    return list(zip(times, gaps.tolist()))


def rate_curves(
    records: RequestRecords, end_s: float, points: int = 60
) -> dict[ClientId, list[tuple[float, float]]]:
    """Service rate of each client over time, in windows of 60 s around each point."""
    curves = ClientCurves(records)
    return {
        client: [
            (at_s, curves.rate(client, max(0.0, at_s - WINDOW_S / 2), at_s + WINDOW_S / 2))
            for at_s in (end_s * k / points for k in range(points + 1))
        ]
        for client in curves.clients
    }


def mean(values: Sequence[float]) -> float:
    return fmean(values) if values else float("nan")
