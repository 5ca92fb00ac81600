"""Programs of slabs: what is large is updated where it lies, and rows that never evict pay for no scores."""

import dataclasses
import itertools
import re

import jax
import pytest

from serving.config import EngineConfig, KeepSettings, Limits
from serving.engine.engine import Engine
from serving.engine.programs import Programs
from serving.engine.slab_layout import SlabLayout
from serving.request import Request, RequestKeep, Sampling
from tests.serving.engine.keep_cases import kept_engine, serve
from tests.serving.tiny import check_against_teacher, finish, model, workload

KEEP = KeepSettings(slab_tok=24, recent_tok=4, scorers=("streaming",), snapshots=4, full_decode=False)
LIMITS = Limits(chunk_tok=16, step_tok=32)


@pytest.fixture(scope="module")
def wide():
    """An engine whose pools and rows of scores are far larger than what is made on the way; not compiled."""
    config = EngineConfig(
        max_slots=16,
        page_size=16,
        num_pages=600,
        window_pages=600,
        max_request_tok=512,
        prefill_rows=(1,),
        chunk_sizes=(16,),
        limits=LIMITS,
        keep=dataclasses.replace(KEEP, slab_tok=256, snapshots=300),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "compile", lambda self, *args: None)
        return Engine(model("0_1s"), config)


@pytest.mark.parametrize("name", ["settle", "prefill votes", "decode slabs", "decode exact"])
def test_no_program_copies_a_pool_or_the_rows_of_scores(wide, name):
    (spec,) = (spec for key, spec in wide.programs.stack.listing(wide.programs) if key[0] == name)
    program = spec.lower().compile()
    memory = program.memory_analysis()
    donated = jax.tree.leaves(wide.state)
    assert memory.alias_size_in_bytes >= sum(x.nbytes for x in donated) - 4096
    assert "input_output_alias" in program.as_text()
    kept = wide.state.kept
    large = jax.tree.leaves((kept.votes, [slab.pool for slab in kept.slabs.values()]))
    assert not copies(program.as_text(), large)
    assert memory.temp_size_in_bytes < min(x.nbytes for x in large)


def copies(text, arrays):
    """Copies of whole arrays in a compiled program's text."""
    shapes = {f"f32[{','.join(map(str, x.shape))}]" for x in arrays}
    return [line for shape in shapes for line in re.findall(rf"{re.escape(shape)}\S* copy\(.*", text)]


def test_a_copy_would_be_seen(wide):
    pool = next(iter(wide.state.kept.slabs.values())).pool.keys
    program = jax.jit(lambda x: x.at[1].add(1.0)).lower(pool).compile()  # not donated
    assert copies(program.as_text(), [pool])
    assert program.memory_analysis().alias_size_in_bytes == 0


def calls(eng, monkeypatch):
    """Whether each decode call on slabs was of exact rows alone."""
    seen, run = [], type(eng.programs).decode_slabs

    def decode_slabs(self, *args, exact=False):
        seen.append(exact)
        return run(self, *args, exact=exact)

    monkeypatch.setattr(type(eng.programs), "decode_slabs", decode_slabs)
    return seen


def asking(prompt, new, id=""):
    """A request of `prompt` tokens; a slab of `keep_cases` holds 12."""
    return Request(client="a", id=id, prompt_ids=prompt, sampling=Sampling(max_tokens=new))


def test_rows_that_never_evict_pay_for_no_scores_until_one_that_does_joins_them(monkeypatch):
    short = [asking(range(i, i + 5), 8) for i in range(3)]
    eng = kept_engine()
    seen = calls(eng, monkeypatch)
    check_against_teacher(short, serve(eng, short))
    assert set(seen) == {True}
    seen.clear()
    outputs = serve(eng, [*short, asking(range(30), 4)])
    check_against_teacher(short, outputs[:3])
    assert set(seen) == {True, False}
    finish(eng)


PACKED = pytest.param((1, 2), marks=pytest.mark.long, id="packed")


@pytest.mark.parametrize("rows", [pytest.param((), id="all slots"), PACKED])
def test_a_row_may_change_programs_in_its_middle(rows, monkeypatch):
    """Steps without scores leave the positions that steps with them go on from."""
    eng = kept_engine(decode_rows=rows, limits=dataclasses.replace(LIMITS, decode_steps=(1,)))
    seen = calls(eng, monkeypatch)
    stay = asking(range(3), 10, "stay")
    come = [asking(range(i, i + 14), 3, f"come{i}") for i in range(2)]

    def join(eng):
        if len(seen) == 2:
            for request in come:
                eng.submit(request)
            seen.append(None)

    # `serve` compares the keep-sets of all rows that it was given with the oracle.
    [output] = serve(eng, [stay], join, also=come)
    check_against_teacher([stay], [output])
    ran = [exact for exact in seen if exact is not None]
    assert [exact for exact, _ in itertools.groupby(ran)] == [True, False, True]


def test_a_request_that_asks_for_less_than_it_is_long_is_not_exact():
    plan = SlabLayout.of(model("0_1s").config, EngineConfig(keep=KEEP, max_request_tok=64)).plan
    request = dataclasses.replace(workload(seed=0)[0], prompt_ids=[1] * 10, sampling=Sampling(max_tokens=5))
    assert plan(request).exact
    assert not plan(dataclasses.replace(request, keep=RequestKeep(budget=9))).exact
    assert not plan(dataclasses.replace(request, prompt_ids=[1] * 30)).exact
