"""Experiments with a cluster that changes: E17's six clients while a worker is lost, joins, or is slow.

  python -m serving.simulate --config=configs/cluster_routers.py:E17          the cluster as it is
  python -m serving.simulate --config=configs/cluster_routers.py:E17-skew     one document much more popular
  python -m serving.simulate --config=configs/cluster_routers.py:E17-hot      more than a worker can serve
  python -m serving.simulate --config=configs/cluster_routers.py:E17-loss     a worker is lost at half time
  python -m serving.simulate --config=configs/cluster_routers.py:E17-join     a fourth worker joins then
  python -m serving.simulate --config=configs/cluster_routers.py:E17-slow     one worker of half the speed
  python -m serving.simulate --config=configs/cluster_routers.py:E17-slow-untold    and nobody is told

Half a minute each. What a lost worker ran goes on elsewhere with the tokens it has. Expected: round robin
computes every prefix on every worker; sticky routing overloads the worker of a hot document; D2LPM does
neither, and follows measured speeds.
"""

import math
from dataclasses import replace
from typing import Any

from configs import fair_cluster
from serving.sim.experiment import FairnessExperiment, PolicyRun

HALF_S = 45.0
SLOW = (1.0, 1.0, 1.0, 0.5)
QUANTUM = {"quantum_tok": 20_000}


def runs(**server: Any) -> tuple[PolicyRun, ...]:
    """The routers with the local policy that each is meant for."""
    made = [
        ("rr + vtc", "vtc", {}, "round_robin", {}),
        ("rr + lpm", "lpm", {}, "round_robin", {}),
        ("sticky + lpm", "lpm", {}, "sticky", {}),
        ("preble + lpm", "lpm", {}, "preble", {}),
        ("d2lpm 10000", "dlpm", QUANTUM, "d2lpm", {"quantum_tok": 10_000}),
    ]
    found = []
    for label, policy, options, router, router_options in made:
        cluster = fair_cluster.cluster(router, **router_options)
        for name, value in server.items():
            setattr(cluster, name, value)
        found.append(
            PolicyRun(policy, options, label=label, prompt_weights=fair_cluster.EXTEND, server=cluster)
        )
    return tuple(found)


EXPERIMENTS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "E17-hot": ("one document more popular than a worker can serve", True, {}),
    "E17-loss": ("a worker is lost at half time", False, {"failures": ((1, HALF_S, math.inf),)}),
    "E17-join": ("the fourth worker joins at half time", False, {"failures": ((3, 0.0, HALF_S),)}),
    "E17-slow": ("one worker of half the speed", False, {"speeds": SLOW}),
    "E17-slow-untold": (
        "one worker of half the speed, untold",
        False,
        {"speeds": SLOW, "told_speeds": False},
    ),
}
VARIANTS = tuple(EXPERIMENTS)  # of its own; E17 and E17-skew are those of fair_cluster


def get_config(variant: str = "E17") -> FairnessExperiment:
    if variant in fair_cluster.EXPERIMENTS:
        return fair_cluster.get_config(variant)
    if variant not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {variant!r}; known: {', '.join(EXPERIMENTS)}")
    what, hot, server = EXPERIMENTS[variant]
    sources = fair_cluster.sources(skew=hot)
    if hot:
        sources = (replace(sources[0], rate=60.0), *(replace(source, rate=2.0) for source in sources[1:]))
    return FairnessExperiment(
        id=variant,
        title=f"Four workers, six clients; {what}",
        sources=sources,
        server=fair_cluster.cluster("round_robin"),
        runs=runs(**server),
        demand_s=90.0,
        plots=("measures", "pareto"),
    )
