"""What a server that runs for weeks must not pile up."""

import dataclasses

import numpy as np

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.radix_tree import RadixTree
from serving.kvcache.tokens import TokenIds
from serving.request import Request, Sampling
from tests.serving.kv_groups import group
from tests.serving.tiny import VOCAB, engine, model


def test_evicted_prefixes_leave_the_eviction_lines_of_every_group():
    """Here only full pages are ever short; the line of the windows is never served."""
    tree = RadixTree(4, [group(None, 99), group(6, 99)])
    for i in range(2000):
        tree.insert(TokenIds([i] * 8), "", [[1, 2], [NULL_PAGE, 2]])
        if i >= 3:
            tree.evict(0, 1)
    assert sum(1 for _ in tree.nodes()) == 3
    assert all(len(pages._line) < 200 for pages in tree.pages)


def test_eviction_is_still_oldest_first_after_the_lines_were_cleared():
    tree = RadixTree(4, [group(None, 99), group(6, 99)])
    for i in range(500):
        tree.insert(TokenIds([i] * 4), "", [[i + 1], [i + 1]])
        if i >= 5:
            [[full], [window]] = tree.evict(0, 1)
            assert full == window == i - 4


def test_salts_that_nobody_uses_any_more_are_forgotten_and_the_others_are_not():
    tree = RadixTree(4, [group(None, 99)])
    tree.insert(TokenIds([7] * 4), "kept", [[1]])
    tree.watch("waits", TokenIds([8] * 4), "watched", 4)
    for i in range(2000):
        lock, hit = tree.acquire(TokenIds([1] * 4), f"salt {i}", 3)
        assert hit == 0
        tree.release(lock)
    assert len(tree._roots) < 200
    assert tree.match(TokenIds([7] * 5), "kept", 4) == 4
    tree.watcher.take()
    tree.insert(TokenIds([8] * 4), "watched", [[2]])
    assert tree.watcher.take() == ["waits"]


def test_a_request_that_ended_does_not_wait_for_its_deadline():
    eng = engine(model("0_1s"))
    one = Request(client="a", prompt_ids=[1, 2], sampling=Sampling(max_tokens=1), deadline_s=1e6)
    for _ in range(60):
        eng.run([one] * 4)
    assert len(eng._deadlines) < 150


def test_an_engine_that_served_many_tenants_holds_what_it_caches_and_no_more():
    eng = engine(model("0_1s"), policy="dlpm", policy_options={"quantum_tok": 64})
    rng = np.random.default_rng(0)
    for wave in range(40):
        some = [
            Request(client=f"c{i}", prompt_ids=rng.integers(0, VOCAB, 12), sampling=Sampling(max_tokens=2))
            for i in range(8)
        ]
        eng.run([dataclasses.replace(r, cache_salt=f"{wave} {i}") for i, r in enumerate(some)])
    tree = eng.memory.tree
    assert len(tree._roots) < 150
    assert all(len(pages._line) < 150 for pages in tree.pages)
