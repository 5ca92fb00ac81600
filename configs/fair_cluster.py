"""Experiment E17: routers and local policies on a cluster (D2LPM, arXiv 2501.14312).

  python -m serving.simulate --config=configs/fair_cluster.py:E17
  python -m serving.simulate --config=configs/fair_cluster.py:E17-skew      # one document much more popular
  python -m serving.simulate --config=configs/fair_cluster.py:E17-failure   # a worker is down for 30 s

About a minute each. Expected: D2LPM lies between sticky routing and round robin in fairness and throughput.
With skewed popularity, sticky routing overloads the worker of the hot document and D2LPM does not.
"""

from typing import Any

from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine
from serving.sim.workload import Source

EXTEND = (1.0, 0.0)  # service counts computed prompt tokens only
# The A10G of the other experiments with four query heads per KV head: a quarter of the KV to read.
GROUPED = StepCost(context_s=2.02e-6 / 4)


def documents(client: str, count: int) -> tuple[tuple[str, int], ...]:
    return tuple((f"{client}/doc{i}", 3000) for i in range(count))


def sources(skew: bool) -> tuple[Source, ...]:
    common = {"arrivals": "poisson", "prompt": 60, "output": (20, 60), "end_s": 90.0}
    hot = Source(
        "hot", 20.0, prefix=documents("hot", 2), popularity=(19.0, 1.0) if skew else (1.0, 1.0), **common
    )
    return (hot, *(Source(f"v{i}", 5.0, prefix=documents(f"v{i}", 6), **common) for i in range(5)))


def cluster(router: str, **options: Any) -> SimulatedEngine:
    return SimulatedEngine(
        memory_tok=20_000,
        page_tok=20,
        step_tok=4000,
        admit_every=4,
        max_slots=64,
        cost=GROUPED,
        workers=4,
        router=router,
        router_options=options,
    )


def experiment(skew: bool = False, failures: tuple[tuple[int, float, float], ...] = ()) -> FairnessExperiment:
    quantum = {"quantum_tok": 20_000}
    runs = [
        PolicyRun(local, label=f"round robin + {local}", prompt_weights=EXTEND, server=cluster("round_robin"))
        for local in ("fcfs", "vtc", "lpm")
    ]
    runs += [
        PolicyRun("lpm", label="least load + lpm", prompt_weights=EXTEND, server=cluster("least_load")),
        PolicyRun("lpm", label="sticky + lpm", prompt_weights=EXTEND, server=cluster("sticky")),
        PolicyRun("lpm", label="preble + lpm", prompt_weights=EXTEND, server=cluster("preble")),
        PolicyRun(
            "dlpm", quantum, label="round robin + dlpm", prompt_weights=EXTEND, server=cluster("round_robin")
        ),
        PolicyRun("dlpm", quantum, label="sticky + dlpm", prompt_weights=EXTEND, server=cluster("sticky")),
    ]
    runs += [
        PolicyRun(
            "dlpm", quantum, label=f"d2lpm {q}", prompt_weights=EXTEND, server=cluster("d2lpm", quantum_tok=q)
        )
        for q in (2000, 10_000, 50_000, 1_000_000)
    ]
    for run in runs:
        assert run.server is not None
        run.server.failures = failures
    kind = ", one document of 19 in 20 hot requests" if skew else ""
    return FairnessExperiment(
        title=f"Four workers, six clients{kind}" + (", a worker fails" if failures else ""),
        sources=sources(skew),
        server=cluster("round_robin"),
        runs=tuple(runs),
        demand_s=90.0,
        plots=("measures", "pareto"),
    )


EXPERIMENTS = {
    "E17": experiment,
    "E17-skew": lambda: experiment(skew=True),
    "E17-failure": lambda: experiment(failures=((1, 20.0, 50.0),)),
}
VARIANTS = tuple(EXPERIMENTS)


def get_config(variant: str = "E17") -> FairnessExperiment:
    if variant not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {variant!r}; known: {', '.join(EXPERIMENTS)}")
    made = EXPERIMENTS[variant]()
    made.id = variant
    return made
