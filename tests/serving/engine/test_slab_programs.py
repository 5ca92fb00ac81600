"""Programs of slabs: what is large is updated where it lies, and rows that never evict pay for no scores."""

import dataclasses
import functools
import itertools
import re

import jax
import pytest

from serving.config import KeepSettings, Limits
from serving.request import RequestKeep, Sampling
from tests.serving.engine.keep_cases import kept_engine, serve
from tests.serving.tiny import check_against_teacher, finish, model, workload

KEEP = KeepSettings(slab_tok=24, recent_tok=4, scorers=("streaming",), snapshots=40, full_decode=False)


@functools.cache
def compiled():
    """Programs of an engine whose pools and rows of scores are far larger than anything made on the way."""
    return kept_engine(model("0_1s"), keep=KEEP, num_pages=600, window_pages=600, debug=False)


def copies(text, eng):
    """Copies of whole pools or rows of scores in a compiled program's text."""
    arrays = jax.tree.leaves((eng.state.cache.pools, eng.state.kept.votes))
    arrays += [leaf for slab in eng.state.kept.slabs.values() for leaf in jax.tree.leaves(slab.pool)]
    shapes = {f"f32[{','.join(map(str, x.shape))}]" for x in arrays}
    return [line for shape in shapes for line in re.findall(rf"{re.escape(shape)}\S* copy\(.*", text)]


@pytest.mark.parametrize("name", ["settle", "prefill votes", "decode slabs", "decode exact"])
def test_no_program_copies_a_pool_or_the_rows_of_scores(name):
    eng = compiled()
    state = sum(x.nbytes for x in jax.tree.leaves(eng.state))
    for key, program in eng.programs.compiled.items():
        if key[0] == name:
            memory = program.memory_analysis()
            assert memory.alias_size_in_bytes >= state - 4096, "what is donated comes back in its place"
            assert "input_output_alias" in program.as_text()
            assert not copies(program.as_text(), eng)


def test_a_copy_would_be_seen():
    eng = compiled()
    pool = next(iter(eng.state.kept.slabs.values())).pool.keys
    text = jax.jit(lambda x: x.at[1].add(1.0)).lower(pool).compile().as_text()  # not donated
    assert copies(text, eng)


def calls(eng, monkeypatch):
    """Whether each decode call on slabs was of exact rows alone."""
    seen, run = [], type(eng.programs).decode_slabs

    def decode_slabs(self, *args, exact=False):
        seen.append(exact)
        return run(self, *args, exact=exact)

    monkeypatch.setattr(type(eng.programs), "decode_slabs", decode_slabs)
    return seen


def test_rows_that_never_evict_pay_for_no_scores_until_one_that_does_joins_them(monkeypatch):
    short = [
        dataclasses.replace(r, prompt_ids=r.prompt_ids[:10], sampling=Sampling(max_tokens=12))
        for r in workload(seed=0, n=3)
    ]
    long = [
        dataclasses.replace(r, prompt_ids=list(range(40)), sampling=Sampling(max_tokens=6))
        for r in workload(seed=1, n=1)
    ]
    keep = dataclasses.replace(KEEP, slab_tok=24)
    eng = kept_engine(model("0_1s"), keep=keep, limits=Limits(chunk_tok=16, step_tok=32))
    seen = calls(eng, monkeypatch)
    check_against_teacher(short, serve(eng, short), model("0_1s"))
    assert set(seen) == {True}
    seen.clear()
    outputs = serve(eng, [*short, *long])
    check_against_teacher(short, outputs[:3], model("0_1s"))
    assert set(seen) == {True, False}
    finish(eng)


@pytest.mark.parametrize("rows", [(), (1, 2)], ids=["all slots", "packed"])
def test_a_row_may_change_programs_in_its_middle(rows, monkeypatch):
    """Steps without scores leave the positions that steps with them go on from."""
    eng = kept_engine(model("0_1s"), keep=KEEP, decode_rows=rows, limits=Limits(chunk_tok=16, step_tok=32))
    seen = calls(eng, monkeypatch)
    stay = dataclasses.replace(
        workload(seed=3)[0], id="stay", prompt_ids=list(range(8)), sampling=Sampling(max_tokens=14)
    )
    come = [
        dataclasses.replace(
            stay, id=f"come{i}", prompt_ids=list(range(i, i + 30)), sampling=Sampling(max_tokens=3)
        )
        for i in range(2)
    ]
    waiting = list(come)

    def join(eng):
        if waiting and len(seen) in (3, 8):
            seen.append(None)
            eng.submit(waiting.pop())

    # `serve` compares the keep-sets of all rows that it was given with the oracle.
    [output] = serve(eng, [stay], join, also=come)
    check_against_teacher([stay], [output], model("0_1s"))
    calls_ = [exact for exact in seen if exact is not None]
    assert sum(a != b for a, b in itertools.pairwise(calls_)) >= 2


def test_a_request_that_asks_for_less_than_it_is_long_is_not_exact():
    eng = compiled()
    plan = eng.slabs.plan
    request = dataclasses.replace(workload(seed=0)[0], prompt_ids=[1] * 10, sampling=Sampling(max_tokens=5))
    assert plan(request).exact
    assert not plan(dataclasses.replace(request, keep=RequestKeep(budget=9))).exact
    assert not plan(dataclasses.replace(request, prompt_ids=[1] * 30)).exact
