"""The papers' numbers: service rates and differences as the authors of VTC compute them, throughput, waits.

They spread a finished request's cost evenly over the time between its first token and its end; the event
log knows better (see `serving.fair.metrics`), but figures can only be compared when they are computed alike.

Source: `fair_bench/plot/visualize.py` of the VTC artifact.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pvariance
from typing import Any

from serving.fair.metrics import Event
from serving.request import ClientId, RequestId
from serving.sim.workload import SimulatedRequest

WINDOW_S = 60.0
WARM_UP_S = 30.0


@dataclass(slots=True)
class Served:
    """One request that finished. `cost` in weighted tokens."""

    client: ClientId
    arrival_s: float
    first_s: float
    end_s: float
    cost: float

    def within(self, start_s: float, end_s: float) -> float:
        """The part of its cost that falls in a window, spread evenly over its life after the first token."""
        life = self.end_s - self.first_s
        if life <= 0:
            return self.cost if start_s <= self.end_s < end_s else 0.0
        return self.cost * max(0.0, min(end_s, self.end_s) - max(start_s, self.first_s)) / life


@dataclass
class Records:
    """Collects finished requests from an event log; hand `take` to a scheduler as its log.

    `cost_of(job, hit_tok)` prices a request: weighted tokens as its policy bills them.
    """

    jobs: dict[RequestId, SimulatedRequest]
    cost_of: Callable[[SimulatedRequest, int], float] = lambda job, hit_tok: (
        job.prompt_tok + 2.0 * job.output_tok
    )
    served: list[Served] = field(default_factory=list)

    def __post_init__(self):
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
        job = self.jobs[id]
        first_s, hit = self._first_s.pop(id), self._hit.pop(id)
        cost = self.cost_of(job, hit)
        self.served.append(Served(job.client, self._arrival_s.pop(id), first_s, now_s, cost))

    def by_client(self) -> dict[ClientId, list[Served]]:
        found: dict[ClientId, list[Served]] = {}
        for one in self.served:
            found.setdefault(one.client, []).append(one)
        return dict(sorted(found.items()))


def service_rate(served: Iterable[Served], start_s: float, end_s: float) -> float:
    """Weighted tokens a second in a window."""
    return sum(one.within(start_s, end_s) for one in served) / (end_s - start_s)


def demand_rate(served: Iterable[Served], start_s: float, end_s: float) -> float:
    """Weighted tokens a second of what arrives in a window."""
    return sum(one.cost for one in served if start_s <= one.arrival_s < end_s) / (end_s - start_s)


def service_difference(records: Records, duration_s: float) -> dict[str, float]:
    """Table 2 of the VTC paper: a client is owed no more than it asked for.

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
    records: Records, start_s: float, end_s: float, points: int = 200
) -> list[tuple[float, float]]:
    """Figures 3, 7, 8: (time, most minus least accumulated service since `start_s`)."""
    clients = records.by_client()
    curve = []
    for k in range(points + 1):
        at_s = start_s + (end_s - start_s) * k / points
        sums = [sum(one.within(start_s, at_s) for one in served) for served in clients.values()]
        curve.append((at_s, max(sums) - min(sums) if sums else 0.0))
    return curve


def rate_curves(
    records: Records, end_s: float, points: int = 60
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


def table_row(values: dict[str, Any], digits: int = 5) -> dict[str, Any]:
    """The same with floats rounded to a number of significant digits, for files that people read."""
    return {k: float(f"{v:.{digits}g}") if isinstance(v, float) else v for k, v in values.items()}
