"""The cache of experts: what it keeps, and that no answer depends on it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.offload.runtime.buffers import Slots
from serving.offload.runtime.cache import POLICIES, ExpertCache
from serving.offload.runtime.caching import CacheRunner
from tests.serving.offload.runtime import tiny


def use(cache, *experts):
    """One layer's need, read and computed one by one; the misses."""
    hits, misses = cache.begin((0, e) for e in experts)
    for at in hits:
        cache.done(at)
    for at in misses:
        assert cache.take(at) is not None
        cache.done(at)
    return [e for _, e in misses]


def test_lru_evicts_what_was_used_longest_ago():
    cache = ExpertCache(2)
    assert use(cache, 0) == [0]
    assert use(cache, 1) == [1]
    assert use(cache, 0) == []
    assert use(cache, 2) == [2]
    assert (0, 0) in cache
    assert (0, 1) not in cache


def test_frequency_keeps_an_expert_that_is_used_often_through_a_burst_of_others():
    kept = {}
    for policy in POLICIES:
        cache = ExpertCache(3, policy)
        for _ in range(8):
            use(cache, 7)
        use(cache, 1), use(cache, 2), use(cache, 3)
        kept[policy] = (0, 7) in cache
    assert kept == {"lru": False, "frequency": True}


@given(
    st.integers(1, 5),
    st.sampled_from(POLICIES),
    st.lists(st.sets(st.integers(0, 7), min_size=1), max_size=20),
)
def test_every_expert_that_is_asked_for_is_there_once_and_no_more_than_slots_are(slots, policy, steps):
    cache = ExpertCache(slots, policy)
    for needed in steps:
        before = cache.counts.misses
        use(cache, *sorted(needed))
        assert cache.counts.misses - before <= len(needed)  # each is read at most once
        held = cache.held()
        assert len(held) <= slots
        assert len(set(held.values())) == len(held)
    assert cache.counts.hits + cache.counts.misses == sum(map(len, steps))


@given(st.integers(2, 6), st.sampled_from(POLICIES))
def test_what_a_layer_still_needs_is_never_evicted(slots, policy):
    cache = ExpertCache(slots, policy)
    use(cache, *range(slots))
    hits, misses = cache.begin([(0, 0), (0, 90), (0, 91)])  # 0 waits while the others are read
    assert hits == [(0, 0)]
    for at in misses:
        cache.take(at)
        cache.done(at)
        assert (0, 0) in cache


def test_a_full_cache_of_needed_experts_makes_the_reader_wait_and_not_evict():
    cache, got = ExpertCache(1), []
    cache.begin([(0, 1), (0, 2)])
    cache.take((0, 1))
    reader = threading.Thread(target=lambda: got.append(cache.take((0, 2))))
    reader.start()
    reader.join(0.2)
    assert reader.is_alive()
    assert (0, 1) in cache
    cache.done((0, 1))
    reader.join(5)
    assert got == [0]
    assert (0, 2) in cache


def test_a_guess_never_evicts_what_is_needed_and_goes_first_if_it_was_wrong():
    cache = ExpertCache(3)
    use(cache, 1)
    hits, misses = cache.begin([(0, 1), (0, 2)])
    assert cache.take((0, 2)) is not None
    assert cache.guess((1, 5)) is not None
    assert cache.guess((1, 6)) is None  # the others are needed now, or expected
    assert set(cache.held()) == {(0, 1), (0, 2), (1, 5)}
    for at in [*hits, *misses]:
        cache.done(at)
    cache.begin([(1, 7)])
    cache.take((1, 7))
    assert (1, 5) not in cache
    assert (cache.counts.guesses, cache.counts.right_guesses) == (1, 0)


def test_a_right_guess_is_a_hit_and_what_is_expected_and_there_is_kept():
    cache = ExpertCache(2)
    use(cache, 1), use(cache, 2)
    cache.begin([])
    assert cache.guess((0, 1)) is None  # there already, and kept from now on
    assert cache.guess((0, 3)) is not None
    hits, misses = cache.begin([(0, 1), (0, 3)])
    assert hits == [(0, 1), (0, 3)]
    assert not misses
    assert (cache.counts.guesses, cache.counts.right_guesses) == (1, 1)


def cached(checkpoint, slots_count, policy="lru", **options):
    slots = Slots(slots_count, checkpoint, tiny.source_of(checkpoint), poison=True)
    config = checkpoint.config
    return CacheRunner(
        slots,
        ExpertCache(slots_count, policy),
        n_layers=config.n_layers,
        streams=checkpoint.streams,
        n_experts=config.n_experts,
        **options,
    )


@pytest.mark.parametrize(("slots", "policy"), [(1, "lru"), (3, "frequency"), (9, "lru"), (12, "frequency")])
def test_tokens_and_logprobs_are_the_resident_models_whatever_the_cache(engines, slots, policy):
    runner = cached(engines.checkpoint("plain"), slots, policy)
    assert engines.answers("plain", runner) == engines.resident("plain")
    counts = runner.cache.counts
    assert runner.passes["cache"]
    assert slots < 8 or runner.passes["stream"]
    assert counts.hits + counts.misses == sum(len(asked) for step in runner.routing for asked in step)
    if slots == 12:  # everything fits
        assert counts.evictions <= 12


def test_a_model_with_dense_layers_between_is_equal_too(engines):
    runner = cached(engines.checkpoint("dense between"), 5)
    assert engines.answers("dense between", runner) == engines.resident("dense between")


@pytest.mark.parametrize("slots", [1, 2, 5, 7])
def test_guesses_change_no_answer_and_are_counted(guessing, engines, slots):
    runner = cached(engines.checkpoint("plain"), slots, prefetch=True)
    assert tiny.answers(guessing, runner) == engines.resident("plain")
    counts = runner.cache.counts
    assert counts.right_guesses <= counts.guesses
    assert slots < 5 or counts.right_guesses
    assert not [thread for thread in threading.enumerate() if "lane" in thread.name]


@pytest.fixture(scope="module")
def guessing(engines):
    return tiny.engine(engines.checkpoint("plain"), guesses=True)


def test_what_is_guessed_is_what_the_next_layer_chooses_when_nothing_comes_between(guessing, engines):
    """A router that is applied to its own layer's stream guesses right."""
    runner = cached(engines.checkpoint("plain"), 12, prefetch=True)
    runner._following = {}
    seen = []
    first = runner._before_experts

    def beside(i, pieces, parts, times):
        rows = first(i, pieces, parts, times)
        if all(part.decoding is not None for part in parts):
            asked = {expert for mine in rows for expert in mine.used()}
            seen.append(asked == {expert for part in parts for expert in pieces.guess(i, part)})
        return rows

    runner._before_experts = beside
    tiny.answers(guessing, runner)
    assert seen
    assert all(seen)


def test_a_disk_that_fails_while_guessing_is_reported_when_the_expert_is_asked_for(guessing, engines):
    runner = cached(engines.checkpoint("plain"), 6, prefetch=True)
    read, guess, bad = runner.slots.read, runner.cache.guess, []

    def noted(at):
        slot = guess(at)
        if slot is not None:
            bad.append(at)
        return slot

    def failing(slot, layer, expert):
        if bad:
            raise OSError("the disk failed")
        return read(slot, layer, expert)

    runner.cache.guess, runner.slots.read = noted, failing
    with pytest.raises(OSError, match="the disk failed"):
        tiny.answers(guessing, runner)
    assert not [thread for thread in threading.enumerate() if "lane" in thread.name]
