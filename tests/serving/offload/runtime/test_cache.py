"""The cache of experts: what it keeps, and that no answer depends on it."""

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
    import threading

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


def cached(checkpoint, slots_count, policy="lru"):
    slots = Slots(slots_count, checkpoint, tiny.source_of(checkpoint), poison=True)
    config = checkpoint.config
    return CacheRunner(
        slots,
        ExpertCache(slots_count, policy),
        n_layers=config.n_layers,
        streams=checkpoint.streams,
        n_experts=config.n_experts,
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
