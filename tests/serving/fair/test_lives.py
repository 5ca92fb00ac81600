"""Random lives of the newer policies and options: restored in mid run and swept, they decide the same."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import fair
from serving.fair.ledger import SCALE
from tests.serving.fair.test_properties import drive

MADE = {
    "vtc_fluid": lambda: fair.make("vtc", lift="fluid"),
    "vtc_fluid_weighted": lambda: fair.make("vtc", lift="fluid", weights={"c0": 3, "c2": 0.25}),
    "drr_weighted": lambda: fair.make("drr", quantum_tok=9, weights={"c0": 3, "c2": 0.25}),
    "dlpm_weighted": lambda: fair.make("dlpm", match=match, quantum_tok=9, weights={"c0": 3, "c2": 0.25}),
    "dlpm_credited": lambda: fair.make("dlpm", match=match, quantum_tok=9, newcomers="quantum"),
    "vtc_preempt": lambda: fair.make("vtc_preempt", threshold_tok=40),
    "las": lambda: fair.make("las", half_life_s=20),
    "fairserve": lambda: fair.make("fairserve", limit=5, overload_waiting=3),
    "equinox": lambda: fair.make("equinox"),
}
EXACT = [name for name in MADE if name not in ("las", "fairserve", "equinox")]  # these forget within an error


def match(request):
    return (request.seq * 7) % 23 % (request.prompt_tok + 1)


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), at=st.integers(0, 199))
def test_P24_saved_and_restored_in_mid_run_it_decides_the_same(name, seed, at):
    whole, first = drive(MADE[name](), random.Random(seed), 200)
    broken, second = drive(MADE[name](), random.Random(seed), 200, at, MADE[name])
    assert broken == whole
    if name.startswith("dlpm"):  # refills are given when they are looked at, which says nothing of credit
        for policy in (first, second):
            for account in policy.ledger:
                policy.credit(account.client)
    assert first.snapshot() == second.snapshot()


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_P25_forgetting_idle_clients_changes_no_decision(name, seed):
    keeper, kept = drive(MADE[name](), random.Random(seed), 300)
    sweeper, swept = drive(MADE[name](), random.Random(seed), 300, sweep=True)
    assert sweeper == keeper
    assert len(swept.ledger) <= len(kept.ledger)


@pytest.mark.parametrize("name", ["drr_weighted", "dlpm_weighted"])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_P14_credit_never_exceeds_a_weighted_quantum(name, seed):
    _, policy = drive(MADE[name](), random.Random(seed), 300)
    for account in policy.ledger:
        assert policy.credit(account.client) <= 9 * SCALE * account.weight
