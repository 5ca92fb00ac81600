"""Clusters in virtual time: what D2LPM does, and what its rivals do not, on small workloads."""

import math

import pytest

from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine, run
from serving.sim.workload import Source

DEMAND_S = 20.0


def sources(skew=False):
    common = {"arrivals": "poisson", "prompt": 60, "output": (20, 60), "end_s": DEMAND_S}
    hot = Source(
        "hot",
        60.0 if skew else 20.0,
        prefix=(("hot/0", 3000), ("hot/1", 3000)),
        popularity=(19.0, 1.0) if skew else (1.0, 1.0),
        **common,
    )
    victims = (
        Source(f"v{i}", 2.0 if skew else 5.0, prefix=tuple((f"v{i}/{k}", 3000) for k in range(6)), **common)
        for i in range(5)
    )
    return (hot, *victims)


def outcome(router, policy, *, skew=False, options=None, log=None, **server):
    engine = SimulatedEngine(
        memory_tok=20_000,
        page_tok=20,
        step_tok=4000,
        admit_every=4,
        max_slots=64,
        cost=StepCost(context_s=2.02e-6 / 4),
        workers=4,
        router=router,
        router_options=options or {},
        **server,
    )
    experiment = FairnessExperiment(id="x", sources=sources(skew), server=engine, demand_s=DEMAND_S)
    quantum = {"quantum_tok": 20_000} if policy == "dlpm" else {}
    return run(experiment, PolicyRun(policy, quantum, prompt_weights=(1.0, 0.0)), log=log)


D2LPM = ("d2lpm", "dlpm")
SMALL = {"quantum_tok": 10_000}


def test_round_robin_computes_every_prefix_everywhere_and_d2lpm_does_not():
    rr, d2lpm = outcome("round_robin", "vtc").row(), outcome(*D2LPM, options=SMALL).row()
    assert rr["hit_rate"] < 0.6
    assert d2lpm["hit_rate"] > 0.8
    assert d2lpm["req_per_s"] > 2 * rr["req_per_s"]


def test_sticky_overloads_the_worker_of_a_hot_document_and_d2lpm_does_not():
    sticky = outcome("sticky", "lpm", skew=True)
    d2lpm = outcome(*D2LPM, skew=True, options=SMALL)
    assert sticky.row()["busiest_share"] > 0.35
    assert d2lpm.row()["busiest_share"] < 0.3
    assert d2lpm.row()["req_per_s"] > sticky.row()["req_per_s"]


def test_a_lost_worker_costs_no_output_that_was_made():
    """Every request ends once, and each of its tokens is made once: what was made elsewhere is prompt."""
    made = 0

    def count(event):
        nonlocal made
        if event["event"] == "tokens":
            made += sum(event["counts"].values())

    hurt = outcome(*D2LPM, options=SMALL, failures=((1, 10.0, math.inf),), log=count)
    requests = FairnessExperiment(id="x", sources=sources()).workload()
    assert hurt.result.moved > 0
    assert hurt.result.finished == len(requests)
    assert made == sum(r.output_tok for r in requests)
    assert all(r.first_s >= r.arrival_s for r in hurt.records.served)


def test_a_worker_that_joins_late_is_used_from_then_on():
    late = outcome(*D2LPM, options=SMALL, failures=((3, 0.0, 10.0),))
    busy = late.result.busy_s
    assert 0.1 < busy[3] / busy[0] < 0.95


def test_told_speeds_relieve_the_slow_worker():
    slow = {"speeds": (1.0, 1.0, 1.0, 0.4)}
    told = outcome(*D2LPM, options=SMALL, **slow)
    untold = outcome(*D2LPM, options=SMALL, told_speeds=False, **slow)
    assert told.result.end_s < untold.result.end_s


def test_speeds_that_do_not_fit_the_workers_are_refused():
    with pytest.raises(ValueError, match="speeds"):
        outcome(*D2LPM, speeds=(1.0,))
