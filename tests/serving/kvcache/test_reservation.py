"""What is promised of sliding pools is kept: random lives in pools that are as small as they may be."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import Limits
from serving.engine.plan import RequestState, StepPlan, StepResult
from serving.engine.scheduler import Scheduler
from serving.kvcache.manager import KVCacheManager
from serving.kvcache.reservation import SlidingReservations, max_pages_spanned
from serving.kvcache.tokens import TokenIds
from serving.request import RequestInfo
from tests.serving.engine.test_scheduler import OldestFirst
from tests.serving.kv_groups import group

PAGE = 4
LONGEST = 40


class Stuck(AssertionError):
    """Requests are live, and nothing can be run."""


def scheduler(windows, spare, log, *, overlap=False, **limits) -> Scheduler:
    """Sliding pools with `spare` pages more than what the longest request needs alone."""
    limits = Limits(**limits)
    span = max(limits.chunk_tok, max(limits.decode_steps) * (1 + overlap))
    groups = [group(w, 2 + spare + _alone(w, span)) for w in windows]
    memory = KVCacheManager(
        groups, page_tok=PAGE, max_slots=6, max_tok=LONGEST, span_tok=span, step_tok=limits.step_tok
    )
    return Scheduler(OldestFirst(), memory, limits, log)


def _alone(window: int | None, span: int) -> int:
    whole = -(-LONGEST // PAGE)
    return whole if window is None else min(whole, max_pages_spanned(window - 1 + span, PAGE))


def serve(sched: Scheduler, rng: random.Random, requests: int, *, overlap: bool) -> None:
    """Runs everything to its end as the engine does, with one plan in flight ahead of what is known."""
    stem = [rng.randint(0, 1) for _ in range(24)]
    flight: StepPlan | None = None
    sent = steps = 0
    while sent < requests or not sched.idle:
        steps += 1
        assert steps < 200 * requests, "no progress"
        while sent < requests and len(sched.waiting) < 4:
            own = [rng.randint(0, 1) for _ in range(rng.randint(1, 24))]
            prompt = (stem[: rng.choice((0, 4, 9, 24))] + own)[: LONGEST - 12]
            info = RequestInfo(f"r{sent}", "a", sent, len(prompt), rng.randint(1, LONGEST - len(prompt)))
            sched.submit(RequestState(info, TokenIds(prompt), rng.choice(("", "x")), 0.0), 0.0)
            sent += 1
        if rng.random() < 0.02 and (live := [*sched.running, *sched.waiting]):
            sched.cancel(rng.choice(live), 0.0)
        plan, flight = flight or sched.plan(0.0), None
        if plan is None:
            if not sched.idle:
                raise Stuck(f"{len(sched.running)} run, {len(sched.waiting)} wait")
            continue
        if overlap and rng.random() < 0.7:
            flight = sched.ahead(plan)
        sched.memory.check()
        sched.commit(plan, _produced(plan, rng), 0.0)
        sched.memory.check()


def _produced(plan: StepPlan, rng: random.Random) -> dict[str, StepResult]:
    counts = {c.req.info.id: 1 for c in plan.chunks if c.samples}
    counts |= {e.info.id: min(plan.steps, e.left_tok) for e in plan.decode}
    stops = {id: "stop" if rng.random() < 0.02 else None for id in counts}
    return {id: StepResult(n, [rng.randint(0, 1) for _ in range(n)], stops[id]) for id, n in counts.items()}


def lives(windows, spare, seed, requests=24, tamper=lambda pool: None, **limits) -> list[dict]:
    """The log of a whole run; `tamper` may break each sliding pool's rules first."""
    log: list[dict] = []
    overlap = limits.get("overlap", False)
    sched = scheduler(windows, spare, log.append, **limits)
    for pool in sched.memory.reservations:
        if isinstance(pool, SlidingReservations):
            tamper(pool)
    serve(sched, random.Random(seed), requests, overlap=overlap)
    assert sched.memory.slots_free == 6
    assert all(
        pool.room(0) == pool.total
        for pool in sched.memory.reservations
        if isinstance(pool, SlidingReservations)
    )
    return log


LIMITS = st.fixed_dictionaries(
    {
        "chunk_tok": st.sampled_from([1, 5, 8]),
        "step_tok": st.sampled_from([8, 12, 32]),
        "decode_steps": st.sampled_from([(1,), (8, 4, 1), range(1, 13)]),
        "admit_every": st.sampled_from([1, 8]),
        "mixed": st.booleans(),
        "overlap": st.booleans(),
    }
)


LIVES = {
    "seed": st.integers(0, 10**6),
    "windows": st.sampled_from([(6,), (None, 6), (None, 2), (None, 1), (3, 9), (None, 100), (None, 17)]),
    "spare": st.integers(0, 20),
    "limits": LIMITS,
}


@given(**LIVES)
def test_a_reservation_is_never_broken_and_everyone_comes_to_an_end(seed, windows, spare, limits):
    log = lives(windows, spare, seed, **limits)
    assert not any(e["event"] == "preempt" for e in log)


@pytest.mark.long
@settings(max_examples=2000)
@given(**LIVES)
def test_a_reservation_is_never_broken_in_many_more_lives(seed, windows, spare, limits):
    test_a_reservation_is_never_broken_and_everyone_comes_to_an_end.hypothesis.inner_test(
        seed, windows, spare, limits
    )


CROWDED = {"chunk_tok": 8, "step_tok": 32, "decode_steps": (8, 1)}


def without_reserve(pool: SlidingReservations) -> None:
    """Newcomers are promised all there is: nothing is left to lend."""
    pool.can_admit = lambda new, available: pool.reserved + pool.borrowed + new.reserved <= pool.total


def test_without_a_reserve_prompts_wait_for_each_other_for_ever():
    """The negative control: the same lives, which the reserve brings to their ends."""
    stuck = 0
    for seed in range(20):
        lives((9,), seed % 4, seed, **CROWDED)
        try:
            lives((9,), seed % 4, seed, tamper=without_reserve, **CROWDED)
        except Stuck:
            stuck += 1
    assert stuck >= 3


@pytest.mark.parametrize("lent_to_anyone", [False, True])
def test_what_one_row_is_promised_is_not_lent_to_another(lent_to_anyone):
    """Two rows of window 8 are promised 3 pages each and hold 2: of 6, two are left, one for each."""
    memory = KVCacheManager([group(8, 1 + 6)], page_tok=PAGE, max_slots=2, max_tok=64, span_tok=8)
    [pool] = memory.reservations
    if lent_to_anyone:  # the negative control
        pool.can_grow = lambda reservation, pages, available: pages <= available
    rows = []
    for _ in range(2):
        kv, _ = memory.admit(TokenIds([1] * 8), None, 40, reserve=True)
        assert memory.grow(kv, 0, 8)
        memory.computed(kv, TokenIds([1] * 8), 8, share=False)
        rows.append(kv)
    assert [r.held for row in rows for r in row.reservations] == [2, 2]
    assert memory.grow(rows[0], 8, 16) is lent_to_anyone, "two pages, of which it was promised one"
    assert memory.grow(rows[1], 8, 9) is not lent_to_anyone, "one, which it was promised"


def test_requests_that_decode_are_promised_their_window_and_no_more():
    """Ten requests of window 6 on pages of 4: 3 pages each, and once for all what a chunk takes beyond."""
    pages = 10 * max_pages_spanned(6, PAGE)
    chunk = max_pages_spanned(6 - 1 + 8, PAGE) - max_pages_spanned(6, PAGE)
    memory = KVCacheManager(
        [group(6, 1 + pages + chunk)], page_tok=PAGE, max_slots=20, max_tok=64, span_tok=8
    )
    sequences = []
    while got := memory.admit(TokenIds(range(30)), None, 64, reserve=True):
        kv, at = got
        for end in (8, 16, 24, 30):
            assert memory.grow(kv, at, end)
            memory.computed(kv, TokenIds(range(30)), end, share=False)
            at = end
        # The last token of the prompt: whole pages are handed over or kept, the loan is paid back.
        memory.computed(kv, TokenIds(range(30)), 30, share=True)
        sequences.append(kv)
    assert len(sequences) == 10
    for at in range(30, 64):  # all decode in step, one token each, and nobody is refused
        for kv in sequences:
            assert memory.grow(kv, at, at + 1)
            memory.computed(kv, TokenIds([]), at + 1, share=False)
    memory.check()


def test_the_fewest_pages_a_window_may_need_are_counted_at_its_worst_place():
    for page in (1, 3, 4, 16):
        for tokens in range(1, 40):
            touched = [(start + tokens - 1) // page - start // page + 1 for start in range(page)]
            assert max_pages_spanned(tokens, page) == max(touched)
    assert max_pages_spanned(0, 4) == 0
