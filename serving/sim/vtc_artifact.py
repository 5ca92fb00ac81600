"""Service rates and differences as the authors of VTC compute them.

They spread the cost of a finished request evenly over the time from its first token to its end. The event
log is more exact (see `serving.fair.metrics`), but only figures computed in the same way can be compared.

Source: `fair_bench/plot/visualize.py` of the VTC artifact.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pvariance

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

    `cost_of(request, hit_tok)` is the cost of a request in weighted tokens, as its policy bills it.
    """

    requests: dict[RequestId, SimulatedRequest]
    cost_of: Callable[[SimulatedRequest, int], float] = lambda request, hit_tok: (
        request.prompt_tok + 2.0 * request.output_tok
    )
    served: list[ServedRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._arrival_s: dict[RequestId, float] = {}
        self._first_s: dict[RequestId, float] = {}
        self._hit: dict[RequestId, int] = {}

    def take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "first_token":
            self._first_s.setdefault(event["id"], event["t"])
        elif kind == "arrive":
            self._arrival_s[event["id"]] = event["t"]
        elif kind == "admit":
            self._hit.setdefault(event["id"], event["hit"])
        elif kind == "finish":
            self._finish(event["id"], event["t"])

    def _finish(self, id: RequestId, now_s: float) -> None:
        request = self.requests[id]
        first_s, hit = self._first_s.pop(id), self._hit.pop(id)
        cost = self.cost_of(request, hit)
        self.served.append(ServedRequest(request.client, self._arrival_s.pop(id), first_s, now_s, cost))

    def by_client(self) -> dict[ClientId, list[ServedRequest]]:
        served_of: dict[ClientId, list[ServedRequest]] = {}
        for request in self.served:
            served_of.setdefault(request.client, []).append(request)
        return dict(sorted(served_of.items()))


def service_rate(served: Iterable[ServedRequest], start_s: float, end_s: float) -> float:
    """Weighted tokens per second in a window."""
    return sum(request.within(start_s, end_s) for request in served) / (end_s - start_s)


def demand_rate(served: Iterable[ServedRequest], start_s: float, end_s: float) -> float:
    """Weighted tokens per second of the requests that arrive in a window."""
    return sum(request.cost for request in served if start_s <= request.arrival_s < end_s) / (end_s - start_s)


def service_difference(records: RequestRecords, duration_s: float) -> dict[str, float]:
    """Table 2 of the VTC paper: a client's share is limited by its demand.

    At 19 times x, over [x, x + 60 s]: sum over clients of min(best rate - its rate, |its demand - its rate|).
    """
    clients = records.by_client()
    differences = []
    for k in range(1, 20):
        at_s = k * (duration_s - WARM_UP_S) / 20
        rates = {c: service_rate(served, at_s, at_s + WINDOW_S) for c, served in clients.items()}
        best = max(rates.values(), default=0.0)
        differences.append(
            sum(
                min(best - rate, abs(demand_rate(clients[c], at_s, at_s + WINDOW_S) - rate))
                for c, rate in rates.items()
            )
        )
    return {
        "max_diff": max(differences),
        "avg_diff": fmean(differences),
        "var_diff": pvariance(differences),
    }


def accumulated_gap(
    records: RequestRecords, start_s: float, end_s: float, points: int = 200
) -> list[tuple[float, float]]:
    """Figures 3, 7, 8: (time, largest minus smallest service accumulated by a client since `start_s`)."""
    clients = records.by_client()
    curve = []
    for k in range(points + 1):
        at_s = start_s + (end_s - start_s) * k / points
        sums = [sum(request.within(start_s, at_s) for request in served) for served in clients.values()]
        curve.append((at_s, max(sums) - min(sums) if sums else 0.0))
    return curve


def rate_curves(
    records: RequestRecords, end_s: float, points: int = 60
) -> dict[ClientId, list[tuple[float, float]]]:
    """Service rate of each client over time, in windows of 60 s around each point."""
    return {
        client: [
            (at_s, service_rate(served, max(0.0, at_s - WINDOW_S / 2), at_s + WINDOW_S / 2))
            for at_s in (end_s * k / points for k in range(points + 1))
        ]
        for client, served in records.by_client().items()
    }


def mean(values: Sequence[float]) -> float:
    return fmean(values) if values else float("nan")
