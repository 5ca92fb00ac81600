"""E6: what limits metropolis: perception, speed, old versions, promised immobility (ours).

    python -m serving.metropolis experiment --config=configs/metropolis_e6.py      about 5 minutes on 2 cores
    ... --config=configs/metropolis_e6.py:500         500 agents, the last three and the first: 10 minutes

`versions` reads a world that keeps old versions; `still` lets agents promise to stay as long as the trace
shows them staying, which is more than a live agent can know. The graph's own cost, watched blocker against
full rescan, is `python -m serving.metropolis bench`.
"""

from serving.metropolis.experiments.simulate import MetropolisVariant
from serving.metropolis.experiments.suite import MetropolisExperiment


def get_config(setting: str = "all") -> MetropolisExperiment:
    variants = {
        "paper": MetropolisVariant(),
        "see 2": MetropolisVariant(perceive=2),
        "see 8": MetropolisVariant(perceive=8),
        "move 2": MetropolisVariant(move=2),
        "versions": MetropolisVariant(rule="multi_version"),
        "still": MetropolisVariant(still=True),
        "versions, still": MetropolisVariant(rule="multi_version", still=True),
    }
    modes = ("parallel_sync", "metropolis", "oracle", "critical")
    if setting == "500":
        kept = {name: variants[name] for name in ("paper", "versions", "still", "versions, still")}
        return MetropolisExperiment("e6_500", agents=(500,), modes=modes, variants=kept)
    return MetropolisExperiment("e6", agents=(25, 100), modes=modes, variants=variants)
