"""E8: a social graph of 1,000 people, distance in hops, nobody moves (the paper's section 6, ours in detail).

python -m serving.metropolis experiment --config=configs/metropolis_e8.py      about 3 minutes on 2 cores
"""

from serving.metropolis.experiments import Experiment
from serving.metropolis.social import NetworkConfig


def get_config() -> Experiment:
    return Experiment(
        "e8", replicas=(1, 8), modes=("parallel_sync", "metropolis", "oracle"), network=NetworkConfig()
    )
