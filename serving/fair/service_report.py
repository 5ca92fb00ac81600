"""The figures of a run: service, gaps, lags and latencies of every client, and of all together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.fair.statistics import percentile
from serving.request import ClientId


@dataclass(frozen=True)
class LatencyTarget:
    """Service level objective of a request: thresholds in seconds; None for none.

    Attributes:
      ttft_s: time to first token. tpot_s: mean time per output token after the first.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            threshold = getattr(self, name)
            if threshold is not None and not threshold > 0:
                raise ValueError(f"the target {name} is {threshold}; it must be above 0")

    def met(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether a request with these latencies is in time."""
        pairs = ((ttft_s, self.ttft_s), (tpot_s, self.tpot_s))
        return all(threshold is None or seconds <= threshold for seconds, threshold in pairs)


@dataclass
class ServiceReport:
    """The result of `ServiceMeter`. Times in seconds, service in weighted tokens.

    Attributes:
      service: total by client. weights: of the clients that do not have weight 1.
      curve: (time, total so far) by client, one point per change.
      gap, gap_pair: the largest gap in service per weight between two clients that both waited, and these
        clients. gap_left_out: clients that were not compared, so that `gap` is a lower bound; usually 0.
      gap_curve: (time, largest gap so far).
      lag: by client, the most that it fell behind weighted fluid sharing while it waited (see `fluid_lag`).
      pause_s: by client, the longest time between two admissions while it waited.
      jain: Jain's index of service over fluid share, of the clients that waited for a twentieth of the
        service per weight or more; nan if fewer than two did.
      ttft_s, tpot_s, e2e_s: time from arrival to first token, per output token after it, and to finish, of
        every finished request by client. tpot_s: of those with a second token, where the log has lengths.
      in_target: requests that met `target`, by client.
      prompt_tok, hit_tok, output_tok: totals; recomputed prompt tokens are not counted again.
      hit_rate: share of prompt tokens found in the cache.
    """

    service: dict[ClientId, float] = field(default_factory=dict)
    weights: dict[ClientId, float] = field(default_factory=dict)
    curve: dict[ClientId, list[tuple[float, float]]] = field(default_factory=dict)
    gap: float = 0.0
    gap_pair: tuple[ClientId, ClientId] | None = None
    gap_left_out: int = 0
    gap_curve: list[tuple[float, float]] = field(default_factory=list)
    lag: dict[ClientId, float] = field(default_factory=dict)
    pause_s: dict[ClientId, float] = field(default_factory=dict)
    jain: float = math.nan
    ttft_s: dict[ClientId, list[float]] = field(default_factory=dict)
    tpot_s: dict[ClientId, list[float]] = field(default_factory=dict)
    e2e_s: dict[ClientId, list[float]] = field(default_factory=dict)
    target: LatencyTarget = field(default_factory=LatencyTarget)
    in_target: dict[ClientId, int] = field(default_factory=dict)
    arrived: dict[ClientId, int] = field(default_factory=dict)
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
    def attainment(self) -> float:
        """Share of all requests that arrived and met the target; cancelled and refused ones did not."""
        arrived = sum(self.arrived.values())
        return sum(self.in_target.values()) / arrived if arrived else math.nan

    @property
    def least_attainment(self) -> float:
        """The share of the client that has the smallest."""
        shares = [self.in_target.get(client, 0) / n for client, n in self.arrived.items()]
        return min(shares, default=math.nan)

    @property
    def goodput(self) -> float:
        """Requests per second that met the target."""
        return sum(self.in_target.values()) / self.duration_s if self.duration_s else math.nan

    def table(self) -> dict[str, Any]:
        """Everything except the curves as plain values: the output of a command with --json."""
        seconds = self.duration_s or math.nan
        lagging, paused = _largest(self.lag), _largest(self.pause_s)
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
            "gap_left_out": self.gap_left_out,
            "lag": self.lag.get(lagging, 0.0),
            "lag_client": lagging or None,
            "pause_s": self.pause_s.get(paused, 0.0),
            "pause_client": paused or None,
            "jain": self.jain,
            "attainment": self.attainment,
            "least_attainment": self.least_attainment,
            "goodput": self.goodput,
            "service": self.service,
            "clients": {client: self._latency(client) for client in self.service},
        }

    def _latency(self, client: ClientId) -> dict[str, float]:
        return {
            f"{name}_p{p}_s": percentile(seconds.get(client, ()), p)
            for name, seconds in (("ttft", self.ttft_s), ("e2e", self.e2e_s))
            for p in (50, 90, 99)
        }


def _largest(values: Mapping[ClientId, float]) -> ClientId:
    """The client with the largest value above 0; the first of several; "" if there is none."""
    client = max(values, key=lambda client: values[client], default="")
    return client if values.get(client, 0.0) > 0 else ""
