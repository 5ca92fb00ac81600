"""E3: other models: constants of a 70B on 4 A100 a replica, and of a mixture of experts (figures 6 and 7).

    python -m serving.metropolis experiment --config=configs/metropolis_e3.py      about 3 minutes on 2 cores
    ... --config=configs/metropolis_e3.py:500                                      500 agents: 10 minutes

The 70B constants give 0.77 s for a mean call, which is what the paper's single-thread day implies; the
mixture's are assumed. Paper, 8 A100: 70B 1.97x (busy) and 2.01x (quiet) at best, mixture 2.97x and 2.29x.
"""

from serving.metropolis.experiments.suite import MetropolisExperiment
from serving.metropolis.runtime.server import ServerConfig, step_cost


def get_config(setting: str = "all") -> MetropolisExperiment:
    servers = {
        "70B on 4 A100": ServerConfig(cost=step_cost(0.027, 0.0005, 0.00025), max_running=256),
        "MoE on 2 A100": ServerConfig(cost=step_cost(0.018, 0.0005, 0.00012), max_running=256),
    }
    if setting == "500":
        return MetropolisExperiment("e3_500", agents=(500,), replicas=(2, 4), slots=(256,), servers=servers)
    return MetropolisExperiment("e3", agents=(25, 100), replicas=(2, 4), slots=(256,), servers=servers)
