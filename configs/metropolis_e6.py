"""E6: what limits metropolis: perception, speed, old versions, promised immobility (ours).

    python -m serving.metropolis experiment --config=configs/metropolis_e6.py      about 10 minutes on 2 cores

`versions` reads a world that keeps old versions; `still` lets agents promise to stay as long as the trace
shows them staying, which is more than a live agent can know. The graph's own cost, watched blocker against
full rescan, is `python -m serving.metropolis bench`.
"""

from serving.metropolis.experiments import Experiment
from serving.metropolis.rehearse import Variant


def get_config() -> Experiment:
    variants = {
        "paper": Variant(),
        "see 2": Variant(perceive=2),
        "see 8": Variant(perceive=8),
        "move 2": Variant(move=2),
        "versions": Variant(rule="multi_version"),
        "still": Variant(still=True),
        "versions, still": Variant(rule="multi_version", still=True),
    }
    modes = ("parallel_sync", "metropolis", "oracle", "critical")
    return Experiment("e6", agents=(25, 100, 500), modes=modes, variants=variants)
