"""The debug mode looks: each invariant, broken by hand, is an AssertionError after the next step."""

import pytest

from serving.engine.invariants import check, check_idle
from serving.request import Request, Sampling
from tests.serving.tiny import engine, finish, model


def busy():
    """An engine with one request decoding, one in prefill, one waiting, and a cached prefix."""
    eng = engine(model("0_1s"), debug=True)
    eng.run([Request(client="a", prompt_ids=range(12), sampling=Sampling(max_tokens=2))])
    for id, length in (("old", 5), ("long", 50)):
        eng.submit(Request(client="a", id=id, prompt_ids=range(length), sampling=Sampling(max_tokens=14)))
    eng.step()
    eng.submit(Request(client="b", id="new", prompt_ids=[1, 2], sampling=Sampling(max_tokens=4)))
    assert eng.scheduler.running.keys() == {"old", "long"}
    assert eng.scheduler.running["long"].prefilling
    check(eng)
    return eng


def old(eng):
    return eng.scheduler.running["old"]


def lose_a_page(eng):
    eng.memory.pools[0].allocate(1)


def hold_a_page_twice(eng):
    old(eng).kv.pages[0][-1] = eng.scheduler.running["long"].kv.pages[0][-1]


def free_a_page_that_is_read(eng):
    pages = old(eng).kv.pages[0]
    eng.memory.pools[0].free([pages[-1]])


def show_a_strangers_page(eng):
    eng.memory.tables[0][old(eng).slot, 0] = eng.memory.pools[0].allocate(1)[0]


def unlock(eng):
    node = eng.scheduler.running["long"].kv.lock.end
    node.ref_count -= 1


def leave_a_row(eng):
    eng.memory.tables[1][eng.memory._free_slots[0], 0] = 1


def share_a_slot(eng):
    old(eng).kv.slot = eng.scheduler.running["long"].slot


def lose_a_slot(eng):
    eng.memory._free_slots.pop()


def compute_too_much(eng):
    eng.scheduler.running["long"].computed_tok = 60


def forget_its_past(eng):
    old(eng).computed_tok -= 1


def wait_with_a_slot(eng):
    eng.scheduler.waiting["new"].kv = old(eng).kv


def leave_a_stream(eng):
    eng.streams["gone"] = eng.streams["old"]


def close_without_a_word(eng):
    eng.scheduler.cancel("new", 0.0)
    eng._close("new")


def tell_the_end_twice(eng):
    eng._counts.finished["length"] += 1


def run_and_wait(eng):
    eng.scheduler.waiting["old"] = eng.scheduler.waiting["new"]


def queue_at_the_policy(eng):
    eng.fallback.waiting["gone"] = eng.fallback.waiting["new"]


def forget_at_the_policy(eng):
    eng.fallback.cancel("new")


def prefill_for_ever(eng):
    eng.scheduler.prefilling["old"] = old(eng)


BREAKS = [
    lose_a_page, hold_a_page_twice, free_a_page_that_is_read, show_a_strangers_page, unlock, leave_a_row,
    share_a_slot, lose_a_slot, compute_too_much, forget_its_past, wait_with_a_slot, leave_a_stream,
    close_without_a_word, tell_the_end_twice, run_and_wait, queue_at_the_policy, forget_at_the_policy,
    prefill_for_ever,
]  # fmt: skip


@pytest.mark.parametrize("harm", BREAKS, ids=lambda f: f.__name__)
def test_a_broken_invariant_is_seen(harm):
    eng = busy()
    harm(eng)
    with pytest.raises(AssertionError):
        check(eng)


def test_an_unbroken_engine_passes_and_ends_idle():
    eng = busy()
    finish(eng)
    check_idle(eng)


def test_what_is_left_behind_shows_when_idle():
    eng = busy()
    finish(eng)
    node = next(eng.memory.tree.nodes())
    node.ref_count += 1
    with pytest.raises(AssertionError):
        check_idle(eng)
