"""A cluster of a thousand workers and a million requests, routed by D2LPM.

  python -m serving.simulate --config=configs/cluster_scale.py              1,000 workers, 10^6 requests
  python -m serving.simulate --config=configs/cluster_scale.py:tenth        100 workers, 10^5 requests

2,000 clients with a prefix of their own of 64 to 512 tokens, popular by Zipf's law; questions of 32 tokens,
answers of 8. Every request is one admission and a few steps of a real scheduler with a real prefix tree.
"""

import random

from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.workload import SimulatedRequest

CLIENTS = 2000
RATE = 8.0  # requests per second and worker


def requests(count: int, workers: int, seed: int) -> list[SimulatedRequest]:
    rng = random.Random(seed)
    weights = [1 / (i + 1) for i in range(CLIENTS)]
    clients = rng.choices(range(CLIENTS), weights, k=count)
    made, now_s = [], 0.0
    for i, client in enumerate(clients):
        now_s += rng.expovariate(RATE * workers)
        prefix_tok = 64 * (1 + client % 8)
        tokens = SyntheticTokens([(f"p{client}", prefix_tok), (i, 32)])
        made.append(SimulatedRequest(f"r{i}", f"c{client}", now_s, tokens, prefix_tok + 32, 8, 8))
    return made


def get_config(variant: str = "million") -> FairnessExperiment:
    sizes = {"million": (1_000_000, 1000), "tenth": (100_000, 100)}
    if variant not in sizes:
        raise ValueError(f"unknown size {variant!r}; known: {', '.join(sizes)}")
    count, workers = sizes[variant]
    cluster = SimulatedEngine(
        memory_tok=16_384,
        page_tok=32,
        step_tok=2048,
        admit_every=8,
        max_slots=64,
        cost=StepCost(),
        workers=workers,
        router="d2lpm",
        router_options={"quantum_tok": 5000, "max_blocks": 1_000_000},
    )
    return FairnessExperiment(
        id=f"cluster-{variant}",
        title=f"{workers:,} workers, {count:,} requests of {CLIENTS:,} clients",
        requests=lambda seed: requests(count, workers, seed),
        server=cluster,
        runs=(PolicyRun("dlpm", {"quantum_tok": 20_000}, label="d2lpm", prompt_weights=(1.0, 0.0)),),
        demand_s=count / (RATE * workers),
    )
