"""E4: priority by step, on and off, where slots are scarce enough for order to matter (the paper's table 1).

    python -m serving.metropolis experiment --config=configs/metropolis_e4.py      about 10 minutes on 2 cores

Paper, 500 agents on 8 L4: 15.7 % faster for metropolis, 0.1 % for the oracle. How scarce its slots were is
not published, so the number of slots varies here.
"""

from serving.metropolis.experiments import Experiment


def get_config() -> Experiment:
    return Experiment(
        "e4",
        agents=(100, 500),
        slots=(4, 8),
        priorities=(True, False),
        modes=("metropolis", "oracle"),
    )
