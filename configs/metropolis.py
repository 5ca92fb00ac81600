"""Experiments E1 to E8 on AI Metropolis (Xie et al., MLSys 2025): schedulers on traces in virtual time.

  python -m serving.metropolis experiment --config=configs/metropolis.py:E2
  python -m serving.metropolis live --config=configs/metropolis.py:E7

Times are on 2 cores. `experiment` writes CSV, JSON and PNG into results/metropolis (E2-quick into
runs/metropolis) and runs only the rows that are missing. The paper's figures, measured on its own traces and
machines, stand beside ours.

E1: a full day of 25 agents on 1, 2, 4 and 8 replicas, every mode (figure 4a). About 10 minutes.
  Paper, 8 L4: metropolis 3.25x over single-thread, 1.67x over parallel-sync, 74.7 % of the oracle.

E2: busy (12 h) and quiet (6 h) hours, 25 to 500 agents, 1 and 8 replicas (figure 5). About 20 minutes.
  E2-1000: 1000 agents, 8 replicas. E2-quick: 25 agents, 8 replicas, two seeds.
  Paper, busy hour, 8 L4: 25 agents 1.88x over parallel-sync; 500 agents 4.15x and 92.4 % of the oracle.

E3: other models: constants of a 70B on 4 A100 per replica, and of a mixture of experts (figures 6 and 7).
  About 3 minutes. E3-500: 500 agents, 10 minutes.
  The 70B constants give 0.77 s for a mean call, which is what the paper's single-thread day implies; the
  mixture's are assumed. Paper, 8 A100, best: 70B 1.97x (busy) and 2.01x (quiet), mixture 2.97x and 2.29x.

E4: priority by step, on and off, where slots are scarce enough for order to matter (table 1).
  About 3 minutes. E4-500: 500 agents on 8 replicas, 15 minutes.
  Paper, 500 agents on 8 L4: 15.7 % faster for metropolis, 0.1 % for the oracle. The paper does not say how
  scarce its slots were, so the number of slots varies here.

E5: calls by hour of a synthetic day, beside the published points (figure 4c). A minute.

E6: what limits metropolis: perception, speed, old versions, promised immobility (ours). About 5 minutes.
  E6-500: 500 agents, the last three variants and the first, 10 minutes.
  `versions` reads a world that keeps old versions. `still` lets agents promise to stay as long as the trace
  shows them staying, which is more than a live agent can know. The cost of the graph itself, watched blocker
  against full rescan, is `python -m serving.metropolis bench`.

E7: the town on our own engine, live, with a tiny random model: equality with lock-step, wall-clock gain.
  A few minutes on a CPU. Twelve residents, bytes as tokens, greedy decoding. Every mode must end with the
  same story. This one runs under `live`.

E8: a social graph of 1,000 people, distance in hops, nobody moves (section 6, ours in detail).
  About 5 minutes.
  `paper` is the rule for one version of the world: on a connected graph it is lock-step, since contacts must
  commit together. `versions` reads posts by version: a person waits only for its contacts.
"""

from serving.metropolis.experiments.live import LiveTownConfig
from serving.metropolis.experiments.simulate import MetropolisVariant
from serving.metropolis.experiments.suite import MetropolisExperiment
from serving.metropolis.runtime.server import ServerConfig, step_cost
from serving.metropolis.worlds.social import NetworkConfig


def e1() -> MetropolisExperiment:
    return MetropolisExperiment("e1", hours=(-1,), replicas=(1, 2, 4, 8))


def e2() -> MetropolisExperiment:
    return MetropolisExperiment("e2", agents=(25, 100, 500), hours=(12, 6), replicas=(1, 8))


def e2_1000() -> MetropolisExperiment:
    return MetropolisExperiment("e2_1000", agents=(1000,), hours=(12, 6))


def e2_quick() -> MetropolisExperiment:
    return MetropolisExperiment("e2_quick", hours=(6, 12), seeds=2, out="runs/metropolis")


def e3(name: str = "e3", agents: tuple[int, ...] = (25, 100)) -> MetropolisExperiment:
    servers = {
        "70B on 4 A100": ServerConfig(cost=step_cost(0.027, 0.0005, 0.00025), max_running=256),
        "MoE on 2 A100": ServerConfig(cost=step_cost(0.018, 0.0005, 0.00012), max_running=256),
    }
    return MetropolisExperiment(name, agents=agents, replicas=(2, 4), slots=(256,), servers=servers)


def e4() -> MetropolisExperiment:
    return MetropolisExperiment(
        "e4",
        agents=(100,),
        replicas=(2,),
        slots=(2, 4, 8),
        priorities=(True, False),
        modes=("metropolis", "oracle"),
    )


def e4_500() -> MetropolisExperiment:
    return MetropolisExperiment(
        "e4_500", agents=(500,), slots=(4, 8), priorities=(True, False), modes=("metropolis", "oracle")
    )


def e5() -> MetropolisExperiment:
    return MetropolisExperiment("e5", hours=(-1, *range(24)), modes=("critical",))


E6_VARIANTS = {
    "paper": MetropolisVariant(),
    "see 2": MetropolisVariant(perceive=2),
    "see 8": MetropolisVariant(perceive=8),
    "move 2": MetropolisVariant(move=2),
    "versions": MetropolisVariant(rule="multi_version"),
    "still": MetropolisVariant(still=True),
    "versions, still": MetropolisVariant(rule="multi_version", still=True),
}


def e6(
    name: str = "e6", agents: tuple[int, ...] = (25, 100), variants: tuple[str, ...] = tuple(E6_VARIANTS)
) -> MetropolisExperiment:
    return MetropolisExperiment(
        name,
        agents=agents,
        modes=("parallel_sync", "metropolis", "oracle", "critical"),
        variants={variant: E6_VARIANTS[variant] for variant in variants},
    )


def e8() -> MetropolisExperiment:
    return MetropolisExperiment(
        "e8",
        replicas=(1, 8),
        modes=("parallel_sync", "metropolis", "oracle"),
        variants={variant: E6_VARIANTS[variant] for variant in ("paper", "versions")},
        network=NetworkConfig(),
    )


EXPERIMENTS = {
    "E1": e1,
    "E2": e2,
    "E2-1000": e2_1000,
    "E2-quick": e2_quick,
    "E3": e3,
    "E3-500": lambda: e3("e3_500", (500,)),
    "E4": e4,
    "E4-500": e4_500,
    "E5": e5,
    "E6": e6,
    "E6-500": lambda: e6("e6_500", (500,), ("paper", "versions", "still", "versions, still")),
    "E7": LiveTownConfig,
    "E8": e8,
}
VARIANTS = tuple(EXPERIMENTS)


def get_config(variant: str = "E1") -> MetropolisExperiment | LiveTownConfig:
    if variant not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {variant!r}; known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[variant]()
