"""What `python -m serving.cluster` is told beside what the HTTP server is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import fair
from serving.cluster.autoscaler import ScalingRule
from serving.cluster.workers import WorkerTimes

ROUTERS = {
    "d2lpm": "d2lpm",
    "preble": "preble",
    "sticky": "sticky",
    "least_load": "least_load",
    "rr": "round_robin",
}
TRANSPORTS = ("http", "ray")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options of a cluster.

    Attributes:
      workers: to start with.
      router: a name of `ROUTERS`; its options.
      queue: the policy that orders what waits at the ingress; its options.
      max_live: outputs that a worker may have at once, as a multiple of its slots.
      max_tries: attempts that an output may have.
      cores: CPU cores of the workers, by turns; none = any.
      scaling: bounds of automatic scaling; None = off.
      decision_log: a file for the router's decisions.
    """

    workers: int = 3
    transport: str = "http"
    router: str = "d2lpm"
    router_options: Mapping[str, Any] = field(default_factory=dict)
    queue: str = "vtc"
    queue_options: Mapping[str, Any] = field(default_factory=dict)
    max_live: float = 2.0
    max_tries: int = 3
    cores: Sequence[int] = ()
    times: WorkerTimes = field(default_factory=WorkerTimes)
    scaling: ScalingRule | None = None
    decision_log: Path | None = None

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(f"unknown router {self.router!r}; known: {', '.join(ROUTERS)}")
        if self.transport not in TRANSPORTS:
            raise ValueError(f"unknown transport {self.transport!r}; known: {', '.join(TRANSPORTS)}")
        if self.workers < 1 or self.max_tries < 1:
            raise ValueError(f"workers is {self.workers} and max_tries {self.max_tries}; both at least 1")
        if not self.max_live > 0:
            raise ValueError(f"max_live is {self.max_live}; it must be above 0")
        fair.make(ROUTERS[self.router], **self.router_options)
        fair.make(self.queue, **self.queue_options)

    def described(self) -> dict[str, Any]:
        """Ready for JSON."""
        rule = self.scaling
        return {
            "workers": self.workers,
            "transport": self.transport,
            "router": self.router,
            "router_options": dict(self.router_options),
            "queue": self.queue,
            "max_live": self.max_live,
            "max_tries": self.max_tries,
            "heartbeat_s": self.times.heartbeat_s,
            "scaling": None if rule is None else [rule.min_workers, rule.max_workers],
        }


def with_weights(name: str, options: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
    """Options of a policy or router that shares by weight where it can."""
    given = dict(options)
    if weights and "weights" in fair.options(name):
        given.setdefault("weights", dict(weights))
    return given
