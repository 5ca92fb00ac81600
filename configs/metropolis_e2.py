"""E2: busy (12 h) and quiet (6 h) hours, 25 to 500 agents, 1 and 8 replicas (the paper's figure 5).

    python -m serving.metropolis experiment --config=configs/metropolis_e2.py      about 20 minutes on 2 cores
    ... --config=configs/metropolis_e2.py:1000                                     1000 agents, 8 replicas
    ... --config=configs/metropolis_e2.py:quick                                    25 agents, two seeds

Paper, busy hour, 8 L4: 25 agents 1.88x over parallel-sync; 500 agents 4.15x and 92.4 % of the oracle.
"""

from serving.metropolis.experiments.suite import MetropolisExperiment


def get_config(variant: str = "full") -> MetropolisExperiment:
    if variant == "quick":
        return MetropolisExperiment("e2_quick", hours=(6, 12), seeds=2, out="runs/metropolis")
    if variant == "1000":
        return MetropolisExperiment("e2_1000", agents=(1000,), hours=(12, 6))
    return MetropolisExperiment("e2", agents=(25, 100, 500), hours=(12, 6), replicas=(1, 8))
