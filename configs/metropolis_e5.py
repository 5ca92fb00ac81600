"""E5: calls by hour of a synthetic day, beside the published points (the paper's figure 4c).

python -m serving.metropolis experiment --config=configs/metropolis_e5.py      a minute
"""

from serving.metropolis.experiments.suite import MetropolisExperiment


def get_config() -> MetropolisExperiment:
    return MetropolisExperiment("e5", hours=(-1, *range(24)), modes=("critical",))
