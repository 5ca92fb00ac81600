"""The oracle: whatever an engine does to be fast, its greedy tokens are those of a model without it."""

import random
from collections import Counter

import pytest

from mixattn import PATTERNS
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.request import Request, Sampling
from tests.serving.tiny import LONGEST, check_against_teacher, engine, finish, model, workload


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
@pytest.mark.parametrize("steps", [(1,), (4, 1), (8, 4, 1)], ids=lambda s: f"N{s[0]}")
@pytest.mark.parametrize("reuse", [False, True], ids=["no cache", "cache"])
def test_reuse_steps_and_overlap_do_not_change_tokens(reuse, steps, overlap):
    eng = engine(
        limits=Limits(chunk_tok=16, step_tok=32, decode_steps=steps), reuse=reuse, overlap=overlap, debug=True
    )
    for wave in range(2):
        requests = workload(seed=wave // 2, n=8)
        check_against_teacher(requests, eng.run(requests))
    assert (eng.stats().hit_tok > 0) == reuse
    assert (eng.stats().ahead > 0) == overlap


@pytest.mark.parametrize("mixed", [False, True], ids=["split", "mixed"])
@pytest.mark.parametrize("chunk", [1, 7, 4, 48], ids=["1", "7", "page", "whole"])
def test_chunks_and_step_modes_do_not_change_tokens(chunk, mixed):
    requests = workload(seed=2, n=6)
    eng = engine(limits=Limits(chunk_tok=chunk, step_tok=max(chunk, 8), mixed=mixed), debug=True)
    check_against_teacher(requests, eng.run(requests))


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
def test_retraction_every_few_steps_does_not_change_tokens(every, overlap):
    """A victim loses its memory, keeps its tokens, and goes on as if nothing had been."""
    rng = random.Random(every)
    requests = workload(seed=3, n=8)
    eng = engine(debug=True, overlap=overlap, limits=Limits(chunk_tok=16, step_tok=32, decode_steps=(4, 1)))
    ids = [eng.submit(r) for r in requests]
    outputs, steps = {}, 0
    while eng.live:
        outputs |= {d.id: d.output for d in eng.step() if d.output}
        steps += 1
        # Only those that decode: a victim in every step's prefill would never get anywhere.
        old = [id for id, e in eng.scheduler.running.items() if not e.prefilling and e.preemptions < 3]
        if old and steps % every == 0:
            eng.scheduler.preempt(rng.choice(old), eng.clock())
    assert eng.stats().preemptions > 2
    check_against_teacher(requests, [outputs[id] for id in ids])


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
def test_smaller_decode_programs_do_not_change_tokens_and_run_when_few_are_live(overlap, monkeypatch):
    net = model("0_1s")
    eng = engine(net, decode_rows=(1, 2), overlap=overlap, debug=True)
    ran = Counter()
    decode = eng.programs.decode
    monkeypatch.setattr(
        eng.programs,
        "decode",
        lambda s, batch, *more: (ran.update([len(batch.left_R)]), decode(s, batch, *more))[1],
    )
    requests = workload(seed=9, n=9)
    check_against_teacher(requests, eng.run(requests), net)
    assert ran.keys() == {1, 2, 4}


def test_prefill_programs_are_the_sizes_asked_for_and_each_chunk_takes_the_smallest_that_holds_it():
    net = model("0_1s")
    limits = Limits(chunk_tok=16, step_tok=16, decode_steps=(1,), mixed=False)
    eng = Engine(net, EngineConfig(max_slots=4, prefill_rows=(1,), chunk_sizes=(5, 10), limits=limits))
    assert eng.programs.buckets == [(1, 5), (1, 10), (1, 16)]
    ran = Counter()
    prefill = eng.programs.prefill
    eng.programs.prefill = lambda s, batch, *more: (
        ran.update([batch.tokens_RC.shape]),
        prefill(s, batch, *more),
    )[1]
    requests = [
        Request(client="a", prompt_ids=[1 + n] * n, sampling=Sampling(max_tokens=3)) for n in (3, 8, 21)
    ]
    check_against_teacher(requests, eng.run(requests), net)
    assert ran == {(1, 5): 2, (1, 10): 1, (1, 16): 1}


@pytest.mark.parametrize("sizes", [(0,), (4, 17)])
def test_a_prefill_size_beyond_the_chunk_is_refused_with_both_numbers(sizes):
    with pytest.raises(ValueError, match=r"chunk_sizes=.* must lie in 1..limits.chunk_tok=16"):
        EngineConfig(chunk_sizes=sizes, limits=Limits(chunk_tok=16, step_tok=16)).check()


USUAL = ("ma_offset", "swa")


@pytest.mark.parametrize(
    "name", [*USUAL, *(pytest.param(n, marks=pytest.mark.long) for n in sorted(set(PATTERNS) - set(USUAL)))]
)
def test_every_named_wiring_is_served(name):
    try:
        net = model(name, n_layers=6)
    except ValueError as why:
        pytest.skip(str(why))
    requests = workload(seed=1, n=5)
    eng = engine(net, debug=True)
    check_against_teacher(requests, eng.run(requests), net)
    check_against_teacher(requests, eng.run(requests), net)


def test_a_mixture_of_experts_is_served():
    net = model("0_1s_1s", n_experts=4, experts_per_token=2)
    requests = workload(seed=4, n=8)
    eng = engine(net, debug=True)
    check_against_teacher(requests, eng.run(requests), net)


def test_the_richest_programs_give_plain_requests_the_same_tokens():
    """While one row asks for penalties and log-probabilities, they are computed for the whole batch."""
    requests = workload(seed=5, n=6)
    eng = engine(model("0_1s"), rich=True, debug=True)
    rich = Sampling(max_tokens=40, repetition_penalty=1.3, logprobs=5)
    eng.submit(Request(client="x", prompt_ids=[1, 2, 3], sampling=rich))
    check_against_teacher(requests, eng.run(requests), model("0_1s"))


def test_poison_in_freed_pages_reaches_nobody_in_a_tight_pool():
    """Few pages and short windows: every page is freed, poisoned and used again many times."""
    limits = Limits(chunk_tok=16, step_tok=32, admission="optimistic")
    eng = engine(model("0_1s"), num_pages=24, window_pages=28, limits=limits, debug=True)
    requests = workload(seed=6, n=16)
    check_against_teacher(requests, eng.run(requests), model("0_1s"))
    finish(eng)


SIZES = [(1, 3), (12, 1), (12, 3), (12, 64), (2, 4), (3, 64), (1, 1)]


@pytest.mark.parametrize(
    ("window", "page"), [SIZES[0], *(pytest.param(*size, marks=pytest.mark.long) for size in SIZES[1:])]
)
def test_pages_and_windows_of_any_size_do_not_change_tokens(window, page):
    """Windows smaller than a page and of the query alone; pages of one token and of a whole request."""
    net = model("0_1s", window=window)
    eng = engine(net, page_size=page, num_pages=260, window_pages=160, debug=True)
    requests = workload(seed=0, n=7)
    for _ in range(2):
        check_against_teacher(requests, eng.run(requests), net)
    assert (eng.stats().hit_tok > 0) == (page < 64)


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
@pytest.mark.parametrize("admission", ["reserve", "optimistic"])
def test_pools_of_the_least_size_serve_the_longest_request_and_all_others_one_by_one(admission, overlap):
    net = model("0_1s")
    limits = Limits(chunk_tok=8, step_tok=16, decode_steps=(4, 1), admission=admission)
    eng = engine(net, num_pages=17, window_pages=7, limits=limits, overlap=overlap, debug=True)
    peaks = [pool.peak_pages(LONGEST) for pool in eng.memory.reservations]
    assert peaks == [16, 6], "all there is"
    rng = random.Random(0)
    requests = [
        Request(
            client="a", prompt_ids=[rng.randrange(64) for _ in range(n)], sampling=Sampling(max_tokens=64 - n)
        )
        for n in (60, 3, 40, 63, 1, 30)
    ]
    check_against_teacher(requests, eng.run(requests), net)
    finish(eng)
