"""Re-told policies of other groups: billing and order hold as for our own, and each does what it is for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import fair
from serving.fair.ledger import SCALE
from serving.request import RequestInfo
from tests.serving.fair.oracle import Oracle
from tests.serving.fair.scenario import Scenario, run_scenario
from tests.serving.fair.test_bounds import scenarios

BASELINES = ["las", "fairserve", "equinox", "vtc_preempt"]


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=8)
@given(data=st.data())
def test_P1_P8_P9_they_bill_what_was_executed_and_serve_everybody(name, data):
    scenario = data.draw(scenarios(name))
    run = run_scenario(scenario)
    served = {client: amount / SCALE for client, amount in run.policy.served().items()}
    assert served == dict(Oracle(run.log).served)
    assert run.worker.scheduler.idle
    assert not run.policy.charge_of


@pytest.mark.parametrize("name", BASELINES)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 80))
@settings(max_examples=15)
def test_P24_a_snapshot_goes_on_as_the_original(name, seed, cut):
    import random

    def events(rng):
        for seq in range(80):
            yield "arrive", RequestInfo(f"r{seq}", rng.choice("abcd"), seq, rng.randint(1, 30), 20)
            yield rng.choice(["pick", "finish", "none", "decode", "preempt"]), None

    def play(policy, steps, start):
        decisions = []
        for at, (what, request) in steps:
            now = float(at)
            running = [id for id in policy.charge_of if id not in policy.backlog]
            if what == "arrive":
                policy.arrive(request, now)
            elif what == "pick" and (head := policy.pick(now)):
                policy.admit(head, extend_tok=head.prompt_tok, hit_tok=0)
                decisions.append(head.id)
            elif what == "decode" and running:
                policy.decoded(dict.fromkeys(running, 2))
            elif what == "finish" and running:
                policy.finish(running[0])
            elif what == "preempt" and running:
                policy.preempt(running[-1])
        return decisions

    steps = list(enumerate(events(random.Random(seed))))
    first, twin = fair.make(name), fair.make(name)
    play(first, steps[:cut], 0)
    twin.restore(first.snapshot())
    assert twin.snapshot() == first.snapshot()
    assert play(twin, steps[cut:], cut) == play(first, steps[cut:], cut)


def flood(name, **options):
    """Service of a steady client and of one with five times its requests, all at once."""
    scenario = Scenario(
        policy=name, options=options, clients=2, rates=(5.0, 1.0), requests=300, memory_tok=120, shape="burst"
    )
    history = Oracle(run_scenario(scenario).log).history
    return [served for waiting, served in history if len(waiting) == 2][-1]


@pytest.mark.parametrize("name", BASELINES)
def test_a_flood_gets_no_more_than_its_share_while_both_wait(name):
    served = flood(name)
    assert served["c0"] < 1.5 * served["c1"]
    assert flood("fcfs")["c0"] > 3 * flood("fcfs")["c1"], "which a policy blind to clients gives it"


def test_least_attained_service_forgets():
    policy = fair.make("las", half_life_s=10.0)
    for seq, client in enumerate("ab"):
        policy.arrive(RequestInfo(client, client, seq, 100 if client == "a" else 10, 5), 0.0)
        policy.admit(policy.pick(0.0), extend_tok=100 if client == "a" else 10, hit_tok=0)
        policy.finish(client)
    for seq, client in enumerate("ab", 2):
        policy.arrive(RequestInfo(f"{client}{seq}", client, seq, 10, 5), 0.0)
    assert policy.pick(0.0).client == "b"
    policy.arrive(RequestInfo("b9", "b", 9, 30, 5), 60.0)
    b = policy.pick(60.0)
    policy.admit(b, extend_tok=30, hit_tok=0)
    assert policy.pick(60.0).client == "a", "its hundred tokens of a minute ago are worth less than two"


def test_least_attained_service_survives_years():
    policy = fair.make("las", half_life_s=1.0)
    for year in range(40):
        now_s = year * 3.15e7
        for client in "ab":
            policy.arrive(RequestInfo(f"{client}{year}", client, 2 * year + (client == "b"), 10, 5), now_s)
        first = policy.pick(now_s)
        policy.admit(first, extend_tok=10, hit_tok=0)
        second = policy.pick(now_s)
        assert second.client != first.client
        policy.admit(second, extend_tok=10, hit_tok=0)
        policy.finish(first.id)
        policy.finish(second.id)


def test_fairserve_throttles_only_under_overload_and_never_in_an_interaction():
    policy = fair.make("fairserve", limit=2, overload_waiting=4)

    def ask(seq, program=""):
        return policy.arrive(RequestInfo(f"r{seq}", "a", seq, 10, 5, program=program), float(seq))

    assert [ask(seq, "talk" if seq == 0 else "") for seq in range(5)] == [True] * 5, "nothing waits in excess"
    assert not ask(5), "over the limit and overloaded"
    assert ask(6, "talk"), "the next call of a talk that has begun"
    assert not ask(7, "another talk")


def test_fairserve_shares_usual_requests_not_tokens():
    policy = fair.make("fairserve")
    order = []
    for seq in range(40):
        client, prompt = ("long", 100) if seq % 2 else ("short", 10)
        policy.arrive(RequestInfo(f"r{seq}", client, seq, prompt, 1), 0.0)
    for _ in range(20):
        head = policy.pick(0.0)
        policy.admit(head, extend_tok=head.prompt_tok, hit_tok=0)
        policy.decoded({head.id: 1})
        policy.finish(head.id)
        order.append(head.client)
    assert abs(order.count("long") - order.count("short")) <= 2


def test_equinox_makes_up_for_a_wait():
    policy = fair.make("equinox", alpha=1.0, patience_s=1.0)
    policy.arrive(RequestInfo("late", "late", 0, 10, 5), 0.0)
    policy.arrive(RequestInfo("soon", "soon", 1, 10, 5), 9.0)
    for _ in range(2):
        head = policy.pick(9.0)
        policy.admit(head, extend_tok=10, hit_tok=0)
    assert policy._user["late"] == pytest.approx(policy._user["soon"] / 10)


def test_preemptive_vtc_narrows_the_gap_by_preempting_the_client_that_is_ahead():
    """One client holds all memory with long outputs when another arrives."""
    from serving.sim.synthetic_tokens import SyntheticTokens
    from serving.sim.workload import SimulatedRequest

    def job(id, client, at_s, output):
        return SimulatedRequest(id, client, at_s, SyntheticTokens([(id, 5)]), 5, output, output)

    jobs = [job(f"a{i}", "a", 0.0, 95) for i in range(8)] + [job(f"b{i}", "b", 0.2, 95) for i in range(8)]
    gaps, logs = {}, {}
    for name, options in (("vtc", {}), ("vtc_preempt", {"threshold_tok": 40})):
        run = run_scenario(Scenario(policy=name, options=options, memory_tok=200), jobs=jobs)
        gaps[name], logs[name] = Oracle(run.log).gap(), run.log
        assert gaps[name] <= run.bound
        assert sum(event["event"] == "finish" for event in run.log) == 16
    assert gaps["vtc_preempt"] < gaps["vtc"]
    assert any(event["event"] == "preempt" for event in logs["vtc_preempt"])
