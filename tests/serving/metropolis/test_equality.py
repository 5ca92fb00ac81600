"""Out-of-order runs end as lock-step runs do, and runs under wrong rules do not (negative controls)."""

import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pallas_kernels.results import commit
from serving.metropolis import CausalityError, Reach, in_place, multi_version
from serving.metropolis.runtime.audit import Violation, audit
from serving.metropolis.schedule.rules import Margin
from serving.metropolis.schedule.space import METRICS
from tests.serving.metropolis.example_worlds import (
    Case,
    RandomLatencyModel,
    RunRecord,
    build,
    run_case,
    same_end,
)

REACHES = ((4, 1), (2, 1), (1, 1), (2, 2), (0, 1), (1, 2), (1, 3))
MIXED = (Reach(4, 1), Reach(1, 1, 2), Reach(0, 2), Reach(3, 0, 1), Reach(2, 1))


def verdict(case: Case, **options) -> str:
    """`same`, `differs`, or `caught` if the engine raised an error."""
    want = run_case(case, "parallel_sync")
    try:
        got = run_case(case, latency=case.seed + 1, verify_views=True, **options)
    except (CausalityError, AssertionError):
        return "caught"
    return "same" if same_end(want, got) else "differs"


def check_log(case: Case, got) -> None:
    world, _ = build(case)
    distance = world.space.distance if case.metric == "graph" else METRICS[case.metric]
    audit(got.log, world.reset(case.seed), distance, versioned=case.versioned)


def random_case(seed: int) -> Case:
    """Draws 1 to 20 agents, any metric, equal or mixed reaches, with or without promises."""
    draw = random.Random(f"case {seed}")
    metric = draw.choice(["chebyshev", "manhattan", "euclidean", "graph"])
    graph_reaches = ((1, 0, 0), (1, 1), (0, 1), (2, 1))
    one = (Reach(*draw.choice(graph_reaches if metric == "graph" else REACHES)),)
    mixed = (Reach(1, 0), Reach(2, 1), Reach(0, 1)) if metric == "graph" else MIXED
    return Case(
        seed,
        reaches=draw.choice([one, one, mixed]),
        agents=draw.randint(1, 20),
        size=draw.choice([6, 16, 24, 40]),
        steps=draw.randint(1, 12),
        metric=metric,
        stay_for=draw.choice([0, 0, 4]),
    )


def compare(seed: int) -> tuple[Case, RunRecord]:
    case = random_case(seed)
    want = run_case(case, "parallel_sync")
    got = run_case(case, latency=seed + 1, verify_views=True)
    assert same_end(want, got), case
    check_log(case, got)
    return case, got


@pytest.mark.parametrize("block", range(4))
def test_any_random_world_ends_as_in_lock_step(block):
    for seed in range(20 * block, 20 * block + 20):
        compare(seed)


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_equal_agents_end_as_in_lock_step_also_where_they_move_farther_than_they_see(reach):
    for seed in range(8):
        case = Case(seed, (Reach(*reach),))
        assert verdict(case) == "same", case


def test_unequal_agents_end_as_in_lock_step():
    for seed in range(20):
        case = Case(seed, MIXED)
        assert verdict(case) == "same"


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_a_world_that_keeps_versions_allows_the_wider_rule(reach):
    shares = []
    for seed in range(6):
        case = Case(seed, (Reach(*reach),), versioned=True)
        assert verdict(case, rule=multi_version) == "same"
        took = [
            run_case(case, llm=RandomLatencyModel(even=True), rule=r).stats.elapsed_s
            for r in (multi_version, in_place)
        ]
        shares.append(took[0] / took[1])
    assert max(shares) <= 1 + 1e-9
    if reach[0] > reach[1]:  # seeing far costs nothing now
        assert min(shares) < 1


def test_the_wider_rule_on_a_single_version_world_is_noticed():
    assert {verdict(Case(seed), rule=multi_version) for seed in range(5)} & {"caught", "differs"}


def test_modes_in_one_thread_and_in_parallel_agree():
    for seed in range(5):
        assert same_end(run_case(Case(seed), "single_thread"), run_case(Case(seed), "parallel_sync"))


def test_the_order_in_which_a_server_answers_changes_nothing():
    runs = [run_case(Case(3), latency=order) for order in range(6)]
    assert len({tuple(c.members for c in run.log) for run in runs}) > 1, "the orders did not differ"
    assert all(same_end(runs[0], run) for run in runs)


# ---- rules that must fail (published ones, and ones that are too small by one step) ----
def published(a, b):
    """The radius as printed, without the correction for agents that move farther than they see."""
    return Margin(a.perceive + a.move, a.perceive + a.move, a.perceive + a.move)


def reads_only(a, b):
    """Protects the leader's reads, not the follower's later reads."""
    return replace(in_place(a, b), block=a.perceive, still=a.perceive)


def couples_late(a, b):
    """Treats agents of one step as independent if they cannot perceive each other."""
    return replace(in_place(a, b), couple=a.perceive)


def one_less(a, b):
    margin = in_place(a, b)
    return Margin(margin.couple - 1, margin.block - 1, margin.still - 1)


def forgets_a_step(a, b):
    """`write_B + perceive_A - move_B` where the rule has `write_B + perceive_A`, as blocking alone."""
    c = max(a.write + b.perceive, b.write + a.perceive - b.move, a.write + b.write)
    return replace(in_place(a, b), block=c, still=c)


@pytest.mark.parametrize(
    ("rule", "reaches", "worlds"),
    [
        (published, (Reach(0, 1),), 40),
        (published, (Reach(1, 2),), 60),
        (published, (Reach(1, 3),), 60),
        (reads_only, (Reach(4, 1),), 10),
        (couples_late, (Reach(4, 1),), 10),
        (one_less, MIXED, 20),
        (forgets_a_step, (Reach(4, 1), Reach(0, 2), Reach(6, 1, 1)), 40),
    ],
    ids=["published-0-1", "published-1-2", "published-1-3", "reads", "couples", "minus-one", "forgets"],
)
def test_a_wrong_rule_is_caught_or_ends_differently(rule, reaches, worlds):
    bad = sum(verdict(Case(seed, reaches), rule=rule) != "same" for seed in range(worlds))
    good = sum(verdict(Case(seed, reaches)) != "same" for seed in range(min(worlds, 10)))
    assert bad > 0
    assert good == 0


@pytest.mark.parametrize("reach", [(4, 1), (2, 1), (1, 1), (2, 2)], ids=str)
def test_the_published_radius_is_right_where_agents_see_as_far_as_they_move(reach):
    assert all(verdict(Case(seed, (Reach(*reach),)), rule=published) == "same" for seed in range(6))


def test_measuring_a_square_vision_by_circles_is_caught():
    cases = [Case(seed, metric="chebyshev", rule_metric="euclidean") for seed in range(10)]
    assert any(verdict(case) != "same" for case in cases)


@pytest.mark.parametrize("rule_metric", ["euclidean", "chebyshev"])
def test_a_metric_that_never_exceeds_the_worlds_own_is_safe(rule_metric):
    for seed in range(8):
        assert verdict(Case(seed, metric="euclidean", rule_metric=rule_metric)) == "same"


def test_the_audit_catches_runs_under_a_wrong_rule():
    """The audit alone, of runs under a wrong rule without `verify_views`."""
    caught = 0
    for seed in range(10):
        case = Case(seed)
        try:
            check_log(case, run_case(case, latency=seed, rule=reads_only))
        except (Violation, AssertionError):
            caught += 1
    assert caught > 0


@pytest.mark.long
@pytest.mark.parametrize("block", range(20))
def test_ten_thousand_random_worlds_end_as_in_lock_step(block):
    """Appends one line per block to runs/metropolis/equality.jsonl; the committed log is a copy of it."""
    began, sums, kinds = time.perf_counter(), Counter(), Counter()
    for seed in range(1000 + 500 * block, 1500 + 500 * block):
        case, got = compare(seed)
        kinds[case.metric] += 1
        sums.update(
            worlds=1,
            agent_steps=got.stats.agent_steps,
            commits=got.stats.commits,
            calls=got.stats.calls,
            worlds_out_of_order=max(got.stats.leads, default=0) > 0,
            differences=0,
        )
    line = {"first_seed": 1000 + 500 * block, **sums, **kinds}
    line |= {"seconds": round(time.perf_counter() - began, 1), "commit": commit()}
    log = Path("runs/metropolis/equality.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        out.write(json.dumps(line) + "\n")
