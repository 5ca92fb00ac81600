"""E8: a social graph of 1,000 people, distance in hops, nobody moves (the paper's section 6, ours in detail).

    python -m serving.metropolis experiment --config=configs/metropolis_e8.py      about 5 minutes on 2 cores

`paper` is the rule for one version of the world: on a connected graph it is lock-step, since contacts must
commit together. `versions` reads posts by version: one waits for one's contacts only.
"""

from serving.metropolis.experiments.simulate import MetropolisVariant
from serving.metropolis.experiments.suite import MetropolisExperiment
from serving.metropolis.worlds.social import NetworkConfig


def get_config() -> MetropolisExperiment:
    return MetropolisExperiment(
        "e8",
        replicas=(1, 8),
        modes=("parallel_sync", "metropolis", "oracle"),
        variants={"paper": MetropolisVariant(), "versions": MetropolisVariant(rule="multi_version")},
        network=NetworkConfig(),
    )
