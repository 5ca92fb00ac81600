"""Experiments E13 to E16: locality against fairness on one worker (arXiv 2501.14312).

The paper's figures as numbers are not known to us.

  python -m serving.simulate --config=configs/fair_dlpm.py:E13

About a minute each. Requests ask about documents of 3,000 tokens; a third of all documents fits in the cache.
Expected: DLPM has at least 2.5 times VTC's throughput (the paper: up to 2.87), a hit rate within 3 points
of LPM's, and a gap below its bound, which LPM does not have.
"""

from typing import Any

from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine
from serving.sim.structured_workloads import chat, document_questions, judge, tree_of_thought
from serving.sim.workload import SimulatedRequest, Source

EXTEND = (1.0, 0.0)  # service counts computed prompt tokens only
# The A10G of the other experiments with four query heads per KV head: a quarter of the KV to read.
GROUPED = StepCost(context_s=2.02e-6 / 4)
CACHE = SimulatedEngine(
    memory_tok=20_000, page_tok=20, step_tok=4000, admit_every=4, max_slots=64, cost=GROUPED
)


def documents(client: str, count: int, length: int = 3000) -> tuple[tuple[str, int], ...]:
    return tuple((f"{client}/doc{i}", length) for i in range(count))


def dominant(demand_s: float) -> tuple[Source, ...]:
    """One client at four times the rate with two hot documents; three with six documents each."""
    common = {"arrivals": "poisson", "prompt": 60, "output": (20, 60), "end_s": demand_s}
    victims = [Source(f"v{i}", 2.5, prefix=documents(f"v{i}", 6), **common) for i in range(3)]
    return (Source("hot", 10.0, prefix=documents("hot", 2), **common), *victims)


LOCAL = (
    PolicyRun("fcfs", prompt_weights=EXTEND),
    PolicyRun("vtc", label="vtc, full bill", prompt_weights=EXTEND),
    PolicyRun("vtc", {"cost": "extend"}, label="vtc, extend bill", prompt_weights=EXTEND),
    PolicyRun("lpm", prompt_weights=EXTEND),
)


def dlpm(*quanta: int, **options: Any) -> tuple[PolicyRun, ...]:
    more = "".join(f", {name} {value}" for name, value in options.items())
    return tuple(
        PolicyRun("dlpm", {"quantum_tok": q, **options}, label=f"dlpm {q}{more}", prompt_weights=EXTEND)
        for q in quanta
    )


def e13() -> FairnessExperiment:
    return FairnessExperiment(
        title="DLPM between VTC and LPM: a dominant client with hot documents",
        sources=dominant(120.0),
        server=CACHE,
        runs=(*LOCAL, *dlpm(1000, 5000, 20_000, 100_000)),
        demand_s=120.0,
        plots=("service", "pareto", "latency"),
    )


def e14() -> FairnessExperiment:
    return FairnessExperiment(
        title="VTC billed by full prompts or by what was computed",
        sources=dominant(120.0),
        server=CACHE,
        runs=LOCAL[1:3],
        demand_s=120.0,
        plots=("service", "gap"),
    )


def e15() -> FairnessExperiment:
    return FairnessExperiment(
        title="Trees of thought, document questions, chats, judges and one without any locality, together",
        requests=_mixed,
        server=SimulatedEngine(
            memory_tok=40_000, page_tok=20, step_tok=4000, admit_every=4, max_slots=64, cost=GROUPED
        ),
        runs=(
            *LOCAL,
            PolicyRun("dfs_weight", prompt_weights=EXTEND),
            PolicyRun("hrrn", prompt_weights=EXTEND),
            PolicyRun("rr", prompt_weights=EXTEND),
            PolicyRun("drr", {"quantum_tok": 2000, "cost": "extend"}, prompt_weights=EXTEND),
            *dlpm(5000, 20_000),
        ),
        demand_s=120.0,
        plots=("pareto", "latency"),
    )


def _mixed(seed: int) -> list[SimulatedRequest]:
    requests = [
        *tree_of_thought(
            "tree", problems=40, branch=3, depth=4, prompt_tok=600, thought_tok=60, gap_s=2.0, seed=seed
        ),
        *chat(
            "chat", sessions=60, turns=6, system_tok=400, question_tok=80, answer_tok=80, gap_s=1.5, seed=seed
        ),
        *document_questions(
            "docs",
            documents=12,
            questions=15,
            document_tok=3000,
            question_tok=60,
            answer_tok=40,
            gap_s=0.6,
            seed=seed,
        ),
        *judge(
            "judge",
            requests=200,
            rubric="rubric",
            rubric_tok=2500,
            case_tok=120,
            answer_tok=10,
            gap_s=0.5,
            seed=seed,
        ),
        *judge(
            "judge2",
            requests=200,
            rubric="rubric",
            rubric_tok=2500,
            case_tok=120,
            answer_tok=10,
            gap_s=0.5,
            seed=seed,
        ),
        *judge(
            "cold", requests=200, rubric="", rubric_tok=0, case_tok=800, answer_tok=40, gap_s=0.5, seed=seed
        ),
    ]
    return sorted(requests, key=lambda request: request.arrival_s)


def e16() -> FairnessExperiment:
    more = {"arrivals": "poisson", "prompt": 60, "output": (20, 60)}
    common = more | {"end_s": 120.0}
    return FairnessExperiment(
        title="A client's cold requests behind its own hot ones: aging",
        sources=(
            Source("mixed", 14.0, prefix=documents("mixed", 1), **common),
            Source("mixed", 0.2, prefix=documents("cold", 9), end_s=30.0, **more),
            Source("other", 2.0, prefix=documents("other", 2), **common),
        ),
        server=CACHE,
        runs=(
            PolicyRun("lpm", prompt_weights=EXTEND),
            *dlpm(5000),
            *dlpm(5000, aging_tok=5),
            *dlpm(5000, aging_tok=50),
        ),
        demand_s=120.0,
        plots=("latency",),
    )


EXPERIMENTS = {"E13": e13, "E14": e14, "E15": e15, "E16": e16}
VARIANTS = tuple(EXPERIMENTS)


def get_config(variant: str = "E13") -> FairnessExperiment:
    if variant not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {variant!r}; known: {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[variant]()
    experiment.id = variant
    return experiment
