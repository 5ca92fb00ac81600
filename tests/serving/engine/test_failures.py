"""What goes wrong in serving, row by row, and what must be left standing; rows are numbered in test names:
1 pages exhausted  2 too large  4 cancel anywhere  5 cancel races a finish  6 double free  7 NaN logits
8 stop texts (test_text.py, test_sampling.py)  9 hit inside a gap  10 locks and splits  11 edges of chunks and
pages  12 unknown shape  13 a program raises  17 duplicate id  19 the policy fails  20 large counters
21 freed pages under a step in flight  22 n outputs that end apart.
"""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from serving import fair
from serving.config import Limits
from serving.engine.invariants import check_idle
from serving.engine.output import OutputStream
from serving.engine.policy_fallback import FallbackPolicy
from serving.fair.fcfs import Fcfs
from serving.kvcache.allocator import PageAllocator
from serving.kvcache.manager import KVCacheManager
from serving.kvcache.radix_node import upward
from serving.kvcache.radix_tree import RadixTree
from serving.kvcache.tokens import TokenIds
from serving.request import Request, RequestInfo, Sampling
from tests.serving.kv_groups import group
from tests.serving.tiny import (
    LONGEST,
    VOCAB,
    byte_text,
    check_against_teacher,
    engine,
    finish,
    model,
    teacher_forced,
    workload,
)


def info(prompt, tokens=8, client="a", **more) -> Request:
    return Request(client=client, prompt_ids=prompt, sampling=Sampling(max_tokens=tokens, **more))


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
def test_row_1_pages_exhausted_in_decode_evict_retract_resume(overlap):
    net = model("0_1s")
    requests = [info([i + 1] * 10, 30) for i in range(8)]
    limits = Limits(chunk_tok=16, step_tok=32, admission="optimistic")
    eng = engine(net, num_pages=24, window_pages=28, limits=limits, overlap=overlap, debug=True)
    outputs = eng.run(requests)
    assert eng.stats().preemptions > 0
    check_against_teacher(requests, outputs, net)
    check_idle(eng)


def test_row_2_a_request_larger_than_the_pool_is_refused_at_arrival():
    eng = engine(model("0_1s"), num_pages=24, window_pages=28)
    with pytest.raises(ValueError, match="needs 65 tokens"):
        eng.submit(info([1] * 60, 5))
    memory = KVCacheManager([group(None, 6)], page_tok=4, max_slots=2, max_tok=64, span_tok=8)
    assert memory.never_fits(21) == "needs 6 pages of the full pool, of which there are 5"
    assert memory.never_fits(20) is None
    assert not eng.live
    check_idle(eng)


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
@pytest.mark.parametrize("seed", range(3))
def test_row_4_cancel_in_queue_in_prefill_in_decode_and_after_the_end(seed, overlap):
    rng = random.Random(seed)
    eng = engine(limits=Limits(chunk_tok=4, step_tok=8), overlap=overlap, debug=True)
    requests = workload(seed=seed, n=12)
    ids = [eng.submit(r) for r in requests]
    ended: dict[str, list] = {id: [] for id in ids}
    while eng.live:
        for delta in eng.step():
            ended[delta.id] += [delta.output] if delta.output else []
        victim = rng.choice(ids)
        alive = not ended[victim] and victim in eng.streams
        assert eng.cancel(victim) == alive
    check_idle(eng)
    assert all(len(outputs) == 1 for outputs in ended.values()), "each ends exactly once"
    done = [(r, ended[id][0]) for r, id in zip(requests, ids) if ended[id][0].finish_reason == "length"]
    check_against_teacher(*zip(*done)) if done else None


def test_row_5_a_cancel_while_its_last_step_is_in_flight_ends_it_once():
    eng = engine(overlap=True, debug=True, limits=Limits(chunk_tok=16, step_tok=32, decode_steps=(1,)))
    id = eng.submit(info([1, 2, 3], 6))
    outputs = []
    for _ in range(4):
        outputs += [d.output for d in eng.step() if d.output]
    assert eng._in_flight is not None, "a step is in flight"
    assert eng.cancel(id)
    assert not eng.cancel(id)
    again = eng.submit(dataclasses.replace(info([4, 5, 6], 6), id=id))
    outputs += [d.output for d in finish(eng) if d.output]
    assert [o.finish_reason for o in outputs] == ["cancel", "length"]
    assert outputs[1].output_ids == teacher_forced([4, 5, 6], 6), "none of the old one's tokens"
    assert again == id


def test_row_6_a_page_freed_twice_raises_and_the_null_page_is_never_handed_out():
    pages = PageAllocator(5)
    taken = pages.allocate(4)
    assert 0 not in taken
    pages.free([0, taken[0]])
    with pytest.raises(ValueError, match="freed twice"):
        pages.free([taken[0]])


def broken_model():
    """A model whose logits are NaN for prompts that hold token 63."""
    graphdef, params = nnx.split(model("0_1s"))
    params = jax.tree.map(lambda x: x, params)
    params["embed"]["table"][...] = params["embed"]["table"][...].at[63].set(jnp.nan)
    return nnx.merge(graphdef, params)


def test_row_7_nan_logits_end_that_row_only_even_where_its_pages_go():
    net = broken_model()
    eng = engine(net, num_pages=24, window_pages=28, debug=True)
    bad, good = [4, 63, 5], [1, 2, 3]
    for _ in range(6):
        outputs = eng.run([info(bad), info(good), info([*good, 7])])
        assert [o.finish_reason for o in outputs] == ["error", "length", "length"]
        assert outputs[1].output_ids == teacher_forced(good, 8, model("0_1s"))
    check_idle(eng)


def test_row_7_a_prompt_that_breaks_in_its_first_chunk_ends_there_and_leaves_nothing_to_be_found():
    eng = engine(broken_model(), debug=True)
    bad = info([63, *range(30)])
    for _ in range(2):
        eng.submit(bad)
        [ended] = [delta.output for delta in eng.step()]  # one step is one chunk of 16
        assert (ended.finish_reason, ended.output_ids, ended.hit_tok) == ("error", [], 0)
        assert [o.finish_reason for o in eng.run([bad, info([1, 2, 3])])] == ["error", "length"]
    check_idle(eng)


def test_row_9_hits_end_where_every_window_is_whole_and_give_the_uncached_tokens():
    """Window pages are evicted from cached prompts; later hits fall back to the deepest valid end."""
    net = model("0_1s")
    eng = engine(net, num_pages=24, window_pages=28, debug=True)
    stem = list(range(40))
    hits = set()
    for length in (40, 12, 24, 36, 40, 8, 30, 40, 17):
        for filler in range(3):
            eng.run([info([50 + filler, *range(length)], 3)])
        request = info([*stem[:length], 60], 4)
        [output] = eng.run([request])
        assert output.output_ids == teacher_forced(request.prompt_ids, 4, net)
        hits.add(output.hit_tok)
    assert len(hits) > 2, "hits of several lengths were met"


@pytest.mark.parametrize("gone", range(5))
@pytest.mark.parametrize("length", [8, 24, 28, 36])
def test_row_9_a_hit_ends_where_the_window_before_it_is_whole_or_not_at_all(gone, length):
    """The first window pages of a cached prompt are evicted; a query reads 12 positions, itself included."""
    net = model("0_1s")
    eng = engine(net, limits=Limits(chunk_tok=8, step_tok=32), debug=True)
    stem = list(range(40))
    eng.run([info(stem, 1)])
    eng.memory._evict(1, 2 * gone)  # of windows the oldest: those of `gone` chunks of two pages
    asked = [*stem[:length], 60]
    whole = length // 4 * 4
    oldest_read = whole - 12 + 1
    [output] = eng.run([info(asked, 4)])
    assert output.hit_tok == (whole if gone == 0 or oldest_read // 4 >= 2 * gone else 0)
    assert output.output_ids == teacher_forced(asked, 4, net)


def test_row_10_concurrent_equal_prompts_split_nodes_and_eviction_keep_one_place_a_page():
    eng = engine(model("0_1s"), num_pages=24, window_pages=28, debug=True)  # every step checks the books
    stem = [7] * 16
    requests = [info([*stem[: 4 * (i % 5)], *([i] * 6)], 6) for i in range(20)]
    check_against_teacher(requests, eng.run(requests), model("0_1s"))
    check_idle(eng)


def test_row_10_a_locked_node_is_split_with_its_locks_and_outlives_every_eviction():
    tree = RadixTree(4, [group(None, 99), group(5, 99)])
    tree.insert(TokenIds(range(16)), "", [[1, 2, 3, 4], [1, 2, 3, 4]])
    whole, hit = tree.acquire(TokenIds(range(20)), "", 16)
    half, shorter = tree.acquire(TokenIds([*range(8), 99]), "", 8)
    assert (hit, shorter) == (16, 8)
    assert [node.ref_count for node in upward(whole.end)] == [1, 2], "the lower half, the upper"
    assert tree.evict(0, 99) == [[], []], "all of it is read"
    full, window = tree.evict(1, 99)
    assert (full, sorted(window)) == ([], [1, 3]), "position 8 reads from 4 on, position 16 from 12 on"
    _, spare = tree.insert(TokenIds(range(16)), "", [[5, 6, 7, 8], [5, 6, 7, 8]])
    assert spare == [[5, 6, 7, 8], [6, 8]], (
        "no page in two places: what was missing stays, the rest goes back"
    )
    tree.release(whole)
    assert tree.evict(0, 99) == [[3, 4], [7, 4]], "the half that is still read stays"
    tree.release(half)
    assert tree.evict(0, 99) == [[1, 2], [5, 2]]
    assert [(pages.held, pages.evictable) for pages in tree.pages] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 15, 16, 17, 32, 48, LONGEST - 1])
def test_row_11_prompts_at_the_edges_of_pages_chunks_and_buckets(length):
    eng = engine(debug=True)
    prompt = [(3 * i) % VOCAB for i in range(length)]
    tokens = min(5, LONGEST - length)
    for wave in range(2):
        [output] = eng.run([info(prompt, tokens)])
        assert output.output_ids == teacher_forced(prompt, tokens), wave
    check_idle(eng)


def test_row_12_a_shape_outside_the_buckets_fails_its_request_and_compiles_nothing(monkeypatch):
    eng = engine()
    known = eng.stats().programs
    monkeypatch.setattr(eng.programs, "bucket", lambda requests, tokens, features: (3, 17))
    [output] = eng.run([info([1, 2, 3])])
    assert output.finish_reason == "error"
    monkeypatch.undo()
    [output] = eng.run([info([1, 2, 3])])
    assert output.output_ids == teacher_forced([1, 2, 3], 8)
    assert (eng.stats().programs, eng.stats().resets) == (known, 1)
    check_idle(eng)


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
def test_row_13_a_program_that_raises_ends_its_step_and_the_rest_starts_again(overlap, monkeypatch):
    eng = engine(overlap=overlap, debug=True)
    requests = workload(seed=7, n=9)
    ids = [eng.submit(r) for r in requests]
    outputs = {}
    for _ in range(3):
        outputs |= {d.id: d.output for d in eng.step() if d.output}

    def explode(state, *rest):
        jax.tree.map(lambda x: x.delete(), state)  # donated, then lost
        raise RuntimeError("out of memory")

    monkeypatch.setattr(eng.programs, "decode", explode)
    monkeypatch.setattr(eng.programs, "prefill", explode)
    outputs |= {d.id: d.output for d in eng.step() if d.output}
    monkeypatch.undo()
    outputs |= {d.id: d.output for d in finish(eng) if d.output}
    reasons = [outputs[id].finish_reason for id in ids]
    assert set(reasons) == {"error", "length"}
    whole = [(r, outputs[id]) for r, id in zip(requests, ids) if outputs[id].finish_reason == "length"]
    check_against_teacher(*zip(*whole))
    assert eng.stats().resets == 1


def test_row_13_whoever_was_not_in_the_failed_step_lost_his_pages_too_and_so_did_the_cache(monkeypatch):
    """The state is built anew: what requests and the prefix tree believed of its pages is no longer true."""
    eng = engine(model("0_1s"), limits=Limits(chunk_tok=16, step_tok=16, mixed=False), debug=True)
    stem = list(range(20))
    old = eng.submit(info([*stem, 1], 20))
    while not eng.scheduler.running or eng.scheduler.prefilling:
        eng.step()
    new = eng.submit(info([5, 6, 7]))

    def explode(state, *rest):
        jax.tree.map(lambda x: x.delete(), state)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(eng.programs, "prefill", explode)
    outputs = {d.id: d.output for d in eng.step() if d.output}
    monkeypatch.undo()
    assert outputs[new].finish_reason == "error"
    later = eng.submit(info([*stem, 2], 6))
    outputs |= {d.id: d.output for d in finish(eng) if d.output}
    assert outputs[old].output_ids == teacher_forced([*stem, 1], 20, model("0_1s"))
    assert outputs[later].output_ids == teacher_forced([*stem, 2], 6, model("0_1s"))


def test_row_17_a_live_id_is_refused_and_the_live_one_is_untouched():
    eng = engine()
    eng.submit(dataclasses.replace(info([1, 2, 3]), id="x"))
    with pytest.raises(ValueError, match="'x' is live already"):
        eng.submit(dataclasses.replace(info([9, 9]), id="x"))
    eng.submit(dataclasses.replace(info([5], n=3), id="y"))
    with pytest.raises(ValueError, match="'y#1' is live already"):
        eng.submit(dataclasses.replace(info([9, 9]), id="y#1"))
    [first] = [d.output for d in finish(eng) if d.output and d.id == "x"]
    assert first.output_ids == teacher_forced([1, 2, 3], 8)


def test_row_17_an_id_is_live_until_the_last_of_its_outputs_has_ended():
    """Otherwise two requests' outputs come under one id, and a cancel meets only one of them."""
    eng = engine(debug=True)
    free = eng.run([info([11] * 5, 20, temperature=1.0, seed=1, n=2)])
    stop = next(i for i in free[0].output_ids if i not in free[1].output_ids)
    one = dataclasses.replace(info([11] * 5, 20, temperature=1.0, seed=1, n=2, stop_ids=(stop,)), id="x")
    eng.submit(one)
    while not any(d.output for d in eng.step()):
        pass
    with pytest.raises(ValueError, match="'x' is live already"):
        eng.submit(dataclasses.replace(info([1, 2]), id="x"))
    assert eng.cancel("x")
    assert not eng.cancel("x")
    [last] = [d.output for d in finish(eng) if d.output]
    assert (last.index, last.finish_reason) == (1, "cancel")
    assert eng.submit(dataclasses.replace(info([1, 2]), id="x")) == "x"
    finish(eng)


def test_row_17_a_request_without_a_name_gets_one_that_nobody_has():
    eng = engine()
    for taken in ("r1", "r3", "r4"):
        eng.submit(dataclasses.replace(info([1]), id=taken))
    names = [eng.submit(info([2], n=2)) for _ in range(4)]
    assert len({*names, "r1", "r3", "r4"}) == 7
    finish(eng)


def test_one_bad_request_in_a_batch_leaves_none_of_it_behind():
    eng = engine()
    with pytest.raises(ValueError, match="names token 99"):
        eng.run([info([1], n=2), info([99])])
    assert not eng.live
    check_idle(eng)


class Broken(Fcfs):
    """Fails at the third call of one of its methods."""

    def __init__(self, method, how):
        super().__init__()
        self._left = 3
        original = getattr(self, method)

        def call(*args, **more):
            self._left -= 1
            if self._left <= 0:
                if how == "silent":
                    return None
                raise ZeroDivisionError("bad policy")
            return original(*args, **more)

        setattr(self, method, call)


@pytest.mark.parametrize(
    ("method", "how"),
    [("pick", "raises"), ("pick", "silent"), ("arrive", "raises"), ("admit", "raises"), ("decoded", "raises")]
    + [("finish", "raises")],
)
def test_row_19_a_policy_that_raises_or_starves_gives_way_to_fcfs(method, how, monkeypatch):
    monkeypatch.setattr("serving.fair.make", lambda name, **more: Fcfs() if name == "fcfs" else broken)
    broken = Broken(method, how)
    eng = engine(policy="vtc")
    requests = workload(seed=8, n=8)
    check_against_teacher(requests, eng.run(requests))
    assert ("raised" if how == "raises" else "picked None") in eng.stats().policy_failure
    check_idle(eng)


def test_row_19_a_policy_that_names_whoever_does_not_wait_gives_way_to_fcfs():
    fallback = FallbackPolicy(Fcfs())
    infos = [RequestInfo(id, "a", i, 1, 1) for i, id in enumerate("xyz")]
    for one in infos:
        fallback.arrive(one, 0.0)
    fallback.admit(infos[0], extend_tok=1, hit_tok=0)
    fallback.policy.pick = lambda now_s: infos[0]
    assert fallback.pick(0.0) == infos[1], "the first that does wait"
    assert "picked 'x' while 2 requests waited" in fallback.failure
    fallback.finish("x")
    assert fallback.pick(0.0) == infos[1]


@pytest.mark.parametrize("event", ["arrive", "pick", "admit", "decoded", "preempt", "finish", "cancel"])
def test_row_19_whichever_event_a_policy_fails_at_the_next_one_knows_all(event):
    def fail(*args, **more):
        raise ZeroDivisionError

    fallback = FallbackPolicy(Fcfs())
    setattr(fallback.policy, event, fail)
    x, y, z = (RequestInfo(id, "a", i, 4, 4) for i, id in enumerate("xyz"))
    assert [fallback.arrive(one, 0.0) for one in (x, y, z)] == [True] * 3
    for _ in range(2):
        assert fallback.pick(0.0) == x
        fallback.admit(x, extend_tok=4, hit_tok=0)
        fallback.decoded({"x": 1})
        fallback.preempt("x")
    fallback.admit(x, extend_tok=5, hit_tok=0)
    fallback.finish("x")
    fallback.cancel("y", prefilled_tok=None)
    assert fallback.pick(0.0) == z
    assert f"raised in {event}: ZeroDivisionError" in fallback.failure
    assert (list(fallback.waiting), list(fallback.running)) == (["z"], [])
    assert list(fallback.policy.charge_of) == ["z"]


def test_row_20_counters_are_exact_far_beyond_what_a_float_counts():
    policy = fair.make("vtc")
    for i, client in enumerate("ab"):
        one = RequestInfo(client, client, i, 1, 2**62)
        policy.arrive(one, 0.0)
        policy.admit(one, extend_tok=2**60, hit_tok=0)
    equal = policy.served()["a"]
    assert equal == policy.served()["b"]
    policy.decoded({"a": 1})
    assert policy.served()["a"] > equal, "one token more shows, behind 10**18 of them"


@pytest.mark.parametrize("seed", range(3))
def test_row_21_pages_freed_under_a_step_in_flight_are_read_before_they_are_poisoned(seed):
    """Overlap, tight pools, short windows, cancels at random: every freed page is NaN at once."""
    rng = random.Random(seed)
    limits = Limits(chunk_tok=4, step_tok=16, decode_steps=(4, 1), admission="optimistic")
    net = model("0_1s")
    eng = engine(net, num_pages=24, window_pages=28, limits=limits, overlap=True, debug=True)
    requests = [
        info([rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))], rng.randint(4, 30)) for _ in range(14)
    ]
    ids = [eng.submit(r) for r in requests]
    outputs = {}
    while eng.live:
        outputs |= {d.id: d.output for d in eng.step() if d.output}
        if rng.random() < 0.1 and eng.streams:
            eng.cancel(rng.choice(list(eng.streams)))
    assert eng.stats().ahead > 0
    whole = [(r, outputs[id]) for r, id in zip(requests, ids) if outputs[id].finish_reason != "cancel"]
    check_against_teacher(*zip(*whole), net)
    check_idle(eng)


def test_row_21_a_step_under_way_has_page_tables_of_its_own(monkeypatch):
    """The host goes on changing its own; where jax does not copy an array, the device would see that."""
    eng = engine(model("0_1s"), decode_rows=(1,), overlap=True)
    given = []
    for name in ("prefill", "decode"):
        run = getattr(eng.programs, name)
        monkeypatch.setattr(
            eng.programs,
            name,
            lambda s, batch, *more, run=run: (given.append(batch), run(s, batch, *more))[1],
        )
    eng.run([info([1, 2, 3], 12), info([4], 5)])
    tables = [table for batch in given for table in batch.tables.values()]
    assert {len(table) for table in tables} == {1, 4}, "both ways of making a batch"
    assert not any(np.shares_memory(a, b) for a in tables for b in eng.memory.tables)


def test_poison_does_reach_whoever_reads_a_page_that_is_not_theirs():
    """The control of the tests above: a page freed while it is read shows at once."""
    eng = engine(debug=True, reuse=False)
    eng.submit(info([1] * 9, 20))
    eng.step()
    assert eng._checker is not None
    [req] = eng.scheduler.running.values()
    eng._checker._poison([[req.kv.pages[0][0]], [req.kv.pages[1][0]]])
    [output] = [d.output for d in finish(eng) if d.output]
    assert output.finish_reason == "error"


def test_row_22_outputs_of_one_request_end_apart_and_the_last_still_reads_the_shared_pages():
    eng = engine(debug=True)
    prompt = [11] * 30
    free = eng.run([info(prompt, 20, temperature=1.0, seed=1, n=3)])
    stop = free[1].output_ids[2]
    outputs = eng.run([info(prompt, 20, temperature=1.0, seed=1, n=3, stop_ids=(stop,))])
    assert len({len(o.output_ids) for o in outputs}) > 1, "they end apart"
    for before, after in zip(free, outputs):
        assert after.output_ids == before.output_ids[: len(after.output_ids)]
    check_idle(eng)
    id = eng.submit(info(prompt, 20, n=3))
    eng.step()
    assert eng.cancel(id)
    assert {d.output.finish_reason for d in finish(eng) if d.output} == {"cancel"}


def test_one_that_is_computing_a_prefix_is_waited_for_and_salts_keep_apart():
    events: list = []
    stem = list(range(32))

    def run(cache_salts):
        events.clear()
        eng = engine(log=events.append, limits=Limits(chunk_tok=8, step_tok=32), debug=True)
        requests = [
            dataclasses.replace(info([*stem, 40 + i], 3), cache_salt=cache_salt)
            for i, cache_salt in enumerate(cache_salts)
        ]
        check_against_teacher(requests, eng.run(requests))
        return [e["hit"] for e in events if e["event"] == "admit"]

    assert run(["t", "t", "t"]) == [0, 32, 32], "computed once"
    assert run(["t", "u", "t"]) == [0, 0, 32], "another tenant learns nothing, and nobody waits for him"


class NoSeed(OutputStream):
    @property
    def seed(self) -> int:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")


def test_a_request_that_the_host_cannot_prepare_ends_alone():
    """One exception of one request is no failure of the device: the others give what they give alone."""
    eng = engine(decode=byte_text)
    first = eng.submit(Request(client="a", prompt_ids=[1, 2, 3], sampling=Sampling(max_tokens=12)))
    while not eng.streams[first]._taken:
        eng.step()
    bad = eng.submit(Request(client="b", prompt_ids=[4, 5], sampling=Sampling(max_tokens=4)))
    eng.streams[bad].__class__ = NoSeed  # as if the border had let something through
    other = eng.submit(Request(client="a", prompt_ids=[6], sampling=Sampling(max_tokens=4)))
    outputs = {tuple(d.output.output_ids): d.output for d in finish(eng) if d.output}
    reasons = sorted(output.finish_reason for output in outputs.values())
    assert reasons == ["error", "length", "length"]
    assert tuple(teacher_forced([1, 2, 3], 12)) in outputs
    assert tuple(teacher_forced([6], 4)) in outputs
    assert eng.stats().resets == 0
    assert other


def test_a_decoder_that_fails_ends_the_request_whose_text_it_was():
    good, bad = [1, 2], [7, 3]
    fine = {*good, *teacher_forced(good, 3)}
    poison = next(id for id in teacher_forced(bad, 8) if id not in fine)

    def decode(ids):
        if poison in ids:
            raise RuntimeError("no such token")
        return byte_text(ids)

    eng = engine(decode=decode)
    asked = [(good, 3), (bad, 8), ([poison], 2)]
    outputs = eng.run([Request(client="a", prompt_ids=p, sampling=Sampling(max_tokens=n)) for p, n in asked])
    assert [o.finish_reason for o in outputs[:2]] == ["length", "error"]
    assert outputs[2].output_ids, "a prompt that is no text is no failure"
    assert eng.stats().resets == 0


def test_learned_positions_are_not_exceeded():
    net = model(n_layers=1, wiring="0", positions="learned", max_positions=24)
    eng = engine(net)
    with pytest.raises(ValueError, match="needs 40 positions; the model has learned 24"):
        eng.submit(Request(client="a", prompt_ids=[1] * 20, sampling=Sampling(max_tokens=20)))
