"""Policies by name, and charges that equal the executed work after any event sequence."""

import pytest

from serving import fair
from serving.fair.ledger import SCALE, Account, units
from serving.request import RequestInfo


def test_unknown_names_and_options_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown policy 'sjf'; known: fcfs, .*vtc, .*dlpm"):
        fair.make("sjf")
    with pytest.raises(ValueError, match=r"'vtc' has no option quantum_tok; known: lift, .*output_weight"):
        fair.make("vtc", quantum_tok=3)
    with pytest.raises(ValueError, match="'dlpm' needs match"):
        fair.make("dlpm")
    with pytest.raises(ValueError, match="quantum_tok is 0"):
        fair.make("dlpm", match=lambda request: 0, quantum_tok=0)


def test_a_driver_may_offer_the_cache_to_every_policy():
    assert fair.make("vtc", match=lambda request: 0).pick(0.0) is None


def test_the_bound_is_the_corrected_one():
    assert fair.make("vtc").gap_bound(memory_tok=100, max_prompt_tok=30) == 2 * 200
    dear = fair.make("vtc", prompt_weight=2, output_weight=1)
    assert dear.gap_bound(memory_tok=100, max_prompt_tok=30) == 2 * (100 + 30)
    dlpm = fair.make("dlpm", match=lambda request: 0, quantum_tok=50)
    assert dlpm.gap_bound(memory_tok=100, max_prompt_tok=30) == 2 * (200 + 50)
    assert fair.make("fcfs").gap_bound(memory_tok=100, max_prompt_tok=30) is None


def test_a_float32_counter_would_have_lost_this_token():
    account = Account("a")
    account.charge(units(10**12))
    before = account.counter
    account.charge(units(1))
    assert account.counter - before == SCALE


def running(policy, id="r", prompt_tok=10, **kwargs):
    policy.arrive(RequestInfo(id, "A", int(id[1:] or 0), prompt_tok, 64, **kwargs), 0.0)
    policy.admit(policy.pick(0.0), extend_tok=prompt_tok, hit_tok=0)


def test_a_preempted_request_pays_nothing_for_work_done_again():
    policy = fair.make("vtc")
    running(policy)
    policy.decoded({"r": 3})
    policy.preempt("r")
    policy.admit(policy.pick(0.0), extend_tok=13, hit_tok=0)
    policy.decoded({"r": 1})
    policy.finish("r")
    assert policy.served() == {"A": (10 + 2 * 4) * SCALE}


def test_unless_recomputing_is_billed():
    policy = fair.make("vtc", bill_recompute=True)
    running(policy)
    policy.decoded({"r": 3})
    policy.preempt("r")
    policy.admit(policy.pick(0.0), extend_tok=13, hit_tok=0)
    policy.decoded({"r": 1})
    policy.finish("r")
    assert policy.served() == {"A": (10 + 13 + 2 * 4) * SCALE}


@pytest.mark.parametrize("name", ["fcfs", "vtc", "vtc_predict", "dlpm", "lpm"])
def test_an_admission_that_was_not_carried_out_leaves_no_trace(name):
    options = {"match": lambda request: 0} if name in ("dlpm", "lpm") else {}
    options |= {"quantum_tok": 5} if name == "dlpm" else {}
    policy = fair.make(name, **options)
    for seq, client in enumerate("ABAB"):
        policy.arrive(RequestInfo(f"r{seq}", client, seq, 10, 64), 0.0)
    request = policy.pick(0.0)
    before = policy.served(), [policy.ledger.accounts[c].turn for c in "AB"]
    policy.admit(request, extend_tok=10, hit_tok=0)
    policy.preempt(request.id, prefilled_tok=0)
    assert (policy.served(), [policy.ledger.accounts[c].turn for c in "AB"]) == before
    assert policy.pick(0.0) == request


def test_cancelled_half_way_through_a_prefill_pays_the_half():
    policy = fair.make("vtc")
    running(policy)
    policy.cancel("r", prefilled_tok=4)
    assert policy.served() == {"A": 4 * SCALE}


def test_preempted_half_way_through_a_prefill_pays_the_other_half_later():
    policy = fair.make("vtc")
    running(policy)
    policy.preempt("r", prefilled_tok=4)
    assert policy.served() == {"A": 4 * SCALE}
    policy.admit(policy.pick(0.0), extend_tok=10, hit_tok=0)
    assert policy.served() == {"A": 10 * SCALE}


def test_cancelled_while_waiting_pays_nothing():
    policy = fair.make("vtc")
    policy.arrive(RequestInfo("r", "A", 0, 10, 64), 0.0)
    policy.cancel("r")
    assert policy.served() == {"A": 0}
    assert policy.pick(0.0) is None


def test_an_event_out_of_order_is_refused():
    policy = fair.make("vtc")
    policy.arrive(RequestInfo("r", "A", 0, 10, 64), 0.0)
    with pytest.raises(ValueError, match="'r' is waiting; this event requires a running request"):
        policy.finish("r")
    with pytest.raises(ValueError, match="'r' arrived, but a request of that id is still live"):
        policy.arrive(RequestInfo("r", "A", 1, 10, 64), 0.0)
