"""E1: a full day of 25 agents on 1, 2, 4 and 8 replicas, every mode (the paper's figure 4a).

    python -m serving.metropolis experiment --config=configs/metropolis_e1.py      about 10 minutes on 2 cores

Paper, 8 L4: metropolis 3.25x over single-thread, 1.67x over parallel-sync, 74.7 % of the oracle.
"""

from serving.metropolis.experiments.suite import MetropolisExperiment


def get_config() -> MetropolisExperiment:
    return MetropolisExperiment("e1", hours=(-1,), replicas=(1, 2, 4, 8))
