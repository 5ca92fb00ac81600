"""Pages, prefix tree and holdings together, driven by random lives of requests against a plain model."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.kvcache.allocator import NULL_PAGE, PageAllocator
from serving.kvcache.manager import KVCacheManager
from serving.kvcache.radix_tree import RadixTree
from serving.kvcache.tokens import TokenIds
from tests.serving.kv_groups import group

PAGE = 4


def memory(windows=(None, 6), num_pages=40, slots=4, span=8, max_tok=64) -> KVCacheManager:
    return KVCacheManager(
        [group(w, num_pages) for w in windows], page_tok=PAGE, max_slots=slots, max_tok=max_tok, span_tok=span
    )


class Contents:
    """What the device would hold: for every page of every group, which tokens were written there last."""

    def __init__(self, mem: KVCacheManager):
        self.mem = mem
        self.page = [{} for _ in mem.groups]

    def write(self, kv, tokens, start, end):
        for g in range(len(self.mem.groups)):
            for t in range(start, end):
                page = kv.pages[g][t // PAGE]
                assert page != NULL_PAGE
                # KV of a position depends on every token before it, so that is what is remembered.
                self.page[g][page, t % PAGE] = tuple(tokens[: t + 1])

    def check_visible(self, kv, tokens, query):
        """Everything a query at `query` may read is there and belongs to this request's own tokens."""
        for g, kind in enumerate(self.mem.groups):
            for t in range(getattr(kind, "window", 0) and max(0, query - kind.window + 1), query):
                page = self.mem.tables[g][kv.slot, t // PAGE]
                assert self.page[g][page, t % PAGE] == tuple(tokens[: t + 1])


def live(mem, contents, rng, tokens, chunk):
    """A request's whole life as a generator of single steps."""
    final = len(tokens) + rng.randint(1, 12)
    if mem.never_fits(final):
        return
    while (got := mem.admit(TokenIds(tokens), 0, final, reserve=True)) is None:
        yield
    kv, at = got
    contents.check_visible(kv, tokens, at)
    share = rng.random() < 0.8
    while at < len(tokens):
        end = min(len(tokens), at + chunk)
        assert mem.grow(kv, at, end), "reserved pages are always there"
        contents.check_visible(kv, tokens, at)
        contents.write(kv, tokens, at, end)
        at = end
        mem.computed(kv, TokenIds(tokens), at, share=share)
        yield
    while len(tokens) < final:
        tokens = [*tokens, rng.randint(0, 1)]
        assert mem.grow(kv, at, at + 1)
        contents.check_visible(kv, tokens, at)
        contents.write(kv, tokens, at, at + 1)
        at += 1
        mem.computed(kv, TokenIds(tokens), at, share=False)
        if rng.random() < 0.1:
            break
        yield
    mem.computed(kv, TokenIds(tokens), at, share=True)
    mem.release(kv)


@given(
    seed=st.integers(0, 10**6),
    windows=st.sampled_from([(None,), (5,), (None, 6), (None, 3, 9)]),
    num_pages=st.sampled_from([14, 24, 60]),
)
def test_every_request_reads_exactly_the_tokens_it_would_have_computed_itself(seed, windows, num_pages):
    rng = random.Random(seed)
    mem = memory(windows, num_pages)
    contents = Contents(mem)
    stems = [[rng.randint(0, 1) for _ in range(20)] for _ in range(3)]
    lives = []
    for _ in range(60):
        if len(lives) < 6:
            stem = rng.choice(stems)
            tokens = stem[: rng.randint(1, 20)] + [rng.randint(0, 1) for _ in range(rng.randint(0, 8))]
            lives.append(live(mem, contents, rng, tokens, chunk=rng.choice([1, 3, 4, 8])))
        one = rng.choice(lives)
        if next(one, "over") == "over":
            lives.remove(one)
        mem.check()
    for one in lives:
        for _ in one:
            mem.check()
            break


def finish(mem, tokens):
    kv, at = mem.admit(TokenIds(tokens), 0, len(tokens) + 1, reserve=True)
    while at < len(tokens):
        end = min(len(tokens), at + mem.span_tok)
        assert mem.grow(kv, at, end)
        mem.computed(kv, TokenIds(tokens), end, share=True)
        at = end
    mem.release(kv)


def test_a_finished_prompt_is_found_by_the_next_one_up_to_its_last_token():
    mem = memory()
    finish(mem, list(range(16)))
    assert mem.match(TokenIds(range(16)), 0) == 12, "the last token is always computed, in whole pages"
    assert mem.match(TokenIds(range(17)), 0) == 16
    assert mem.match(TokenIds([*range(8), 99, 98]), 0) == 8
    assert mem.match(TokenIds(range(17)), "other tenant") == 0


def test_a_hit_may_not_end_where_a_window_page_is_gone():
    tree = RadixTree(PAGE, [group(None, 99), group(6, 99)])
    tokens = TokenIds(range(16))
    # The window group kept only its last two pages: positions 8..15.
    tree.insert(tokens, 0, [[1, 2, 3, 4], [0, 0, 3, 4]])
    assert tree.match(tokens, 0, 16) == 16, "a query at 16 reads back to 11"
    assert tree.match(tokens, 0, 15) == 0, "a query at 12 would read back to 7, which is gone"
    tree.insert(tokens.cut(0, 8), 0, [[9, 9], [7, 8]])
    assert tree.match(tokens, 0, 15) == 12, "filled from a request that still had the pages"


def test_eviction_takes_the_oldest_leaf_first_and_never_what_is_locked():
    tree = RadixTree(PAGE, [group(None, 99)])
    tree.insert(TokenIds([1] * 8), 0, [[1, 2]])
    tree.insert(TokenIds([2] * 8), 0, [[3, 4]])
    lock, _ = tree.acquire(TokenIds([1] * 9), 0, 8)
    assert tree.evict(0, 99) == [[3, 4]]
    tree.release(lock)
    tree.insert(TokenIds([3] * 4), 0, [[5]])
    assert tree.evict(0, 1) == [[1, 2]], "used longer ago than the new one"


def test_evicting_window_pages_keeps_full_pages_of_inner_nodes():
    tree = RadixTree(PAGE, [group(None, 99), group(6, 99)])
    tree.insert(TokenIds([1] * 8), 0, [[1, 2], [1, 2]])
    tree.insert(TokenIds([1] * 8 + [2] * 4), 0, [[0, 0, 3], [0, 0, 3]])
    assert tree.evict(1, 1) == [[], [1, 2]]
    assert [pages.held for pages in tree.pages] == [3, 1]
    assert tree.match(TokenIds([1] * 8 + [2] * 4), 0, 12) == 0, (
        "a query at 12 would read positions 7.. of page 1"
    )


def test_freeing_a_page_twice_is_a_bug_that_raises():
    pages = PageAllocator(4)
    taken = pages.allocate(2)
    pages.free([*taken, NULL_PAGE])
    with pytest.raises(ValueError, match="freed twice"):
        pages.free(taken)


def test_reservation_counts_pages_a_lock_made_unevictable():
    mem = memory((None,), num_pages=9, slots=4, max_tok=32)
    finish(mem, [1] * 16)  # 4 pages cached, 4 free
    first, _ = mem.admit(TokenIds([2] * 4), 0, 24, reserve=True)  # promised 6 of 8
    assert mem.admit(TokenIds([1] * 17), 0, 20, reserve=True) is None, (
        "its hit would lock pages promised away"
    )
    mem.release(first)
    mem.check()
    assert mem.admit(TokenIds([1] * 17), 0, 20, reserve=True)[1] == 16


def test_one_page_table_row_never_shows_another_request_after_release():
    mem = memory()
    kv, _ = mem.admit(TokenIds(range(10)), 0, 12, reserve=True)
    mem.grow(kv, 0, 8)
    slot = kv.slot
    mem.release(kv)
    assert all(not np.any(t[slot]) for t in mem.tables)
