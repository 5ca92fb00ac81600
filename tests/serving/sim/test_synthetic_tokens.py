"""Synthetic tokens behave like the tokens they stand for, and the prefix tree cannot tell them apart."""

import random

from hypothesis import given
from hypothesis import strategies as st

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.radix_tree import RadixTree
from serving.sim.synthetic_tokens import SyntheticTokens
from tests.serving.kv_groups import group

segments = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=4)


def spelled(segments):
    return [(key, i) for key, length in segments for i in range(length)]


@given(segments, segments, st.data())
def test_segments_cut_and_compare_as_their_tokens_do(first, second, data):
    a, b = spelled(first), spelled(second)
    x, y = SyntheticTokens(first), SyntheticTokens(second)
    assert len(x) == len(a)
    lo = data.draw(st.integers(0, len(a)))
    hi = data.draw(st.integers(lo, len(a)))
    part = x.cut(lo, hi)
    assert len(part) == hi - lo
    start = data.draw(st.integers(0, hi - lo))
    want = 0
    for mine, theirs in zip(a[lo + start : hi], b):
        if mine != theirs:
            break
        want += 1
    assert part.common(start, y) == want
    n = data.draw(st.integers(1, 4))
    same = a[lo : lo + n] == b[:n]
    if len(a) >= lo + n and len(b) >= n:
        assert (x.head(lo, n) == y.head(0, n)) == same


@given(st.integers(0, 10**6), st.sampled_from([(None,), (None, 6)]))
def test_P21_the_tree_holds_what_was_put_in_and_tells_watchers_of_every_change(seed, windows):
    rng = random.Random(seed)
    page = 2
    tree = RadixTree(page, [group(w, 99) for w in windows])
    waiting = {
        f"w{i}": SyntheticTokens([(rng.choice("ab"), rng.choice([2, 4, 6])), (f"own{i}", 6)])
        for i in range(8)
    }
    known = {id: tree.watch(id, tokens, "", len(tokens)) for id, tokens in waiting.items()}
    locks, next_page = [], 1
    for _ in range(40):
        what = rng.random()
        tokens = rng.choice(list(waiting.values()))
        if what < 0.5:
            whole = tokens.cut(0, rng.randrange(page, len(tokens) + 1) // page * page)
            count = len(whole) // page
            pages = [list(range(next_page, next_page + count)) for _ in windows]
            next_page += count
            tree.insert(whole, "", pages)
        elif what < 0.7:
            lock, hit = tree.acquire(tokens, "", len(tokens))
            assert hit == lock.end.end
            locks.append(lock)
        elif what < 0.85 and locks:
            tree.release(locks.pop(rng.randrange(len(locks))))
        else:
            g = rng.randrange(len(windows))
            evictable, held = tree.pages[g].evictable, tree.pages[g].held
            freed = tree.evict(g, rng.randint(1, 4))
            assert len(freed[g]) <= evictable
            assert tree.pages[g].held == held - len(freed[g])
        assert all(0 <= tree.pages[g].evictable <= tree.pages[g].held for g in range(len(windows)))
        for lock in locks:
            assert NULL_PAGE not in tree.path_pages(lock)[0], (
                "locked pages of full attention are never evicted"
            )
        touched = tree.watcher.take()
        for id in waiting if touched is None else touched:
            known[id] = tree.watch(id, waiting[id], "", len(waiting[id]))
        tree.watcher.take()
        assert known == {id: tree.match(tokens, "", len(tokens)) for id, tokens in waiting.items()}
