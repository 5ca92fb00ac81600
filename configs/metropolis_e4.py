"""E4: priority by step, on and off, where slots are scarce enough for order to matter (the paper's table 1).

    python -m serving.metropolis experiment --config=configs/metropolis_e4.py      about 3 minutes on 2 cores
    ... --config=configs/metropolis_e4.py:500                  500 agents on 8 replicas: 15 minutes

Paper, 500 agents on 8 L4: 15.7 % faster for metropolis, 0.1 % for the oracle. How scarce its slots were is
not published, so the number of slots varies here.
"""

from serving.metropolis.experiments.suite import MetropolisExperiment


def get_config(setting: str = "100") -> MetropolisExperiment:
    common = {"priorities": (True, False), "modes": ("metropolis", "oracle")}
    if setting == "500":
        return MetropolisExperiment("e4_500", agents=(500,), slots=(4, 8), **common)
    return MetropolisExperiment("e4", agents=(100,), replicas=(2,), slots=(2, 4, 8), **common)
