"""Segments of layers compute what the whole stack computes, and share programs between layers that are
alike."""

import dataclasses

import jax
import numpy as np
import pytest

from mixattn.cache import Paged
from mixattn.cache.protocol import select_token
from mixattn.spec import PATTERNS
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.engine.segments import (
    RowPlaces,
    _layers,
    _spans,
    best_size,
    cut,
    last_only,
    run_segment,
)
from serving.engine.stacks import MAX_WHOLE, SegmentedStack, WholeStack, make_stack
from tests.serving.tiny import LONGEST, check_against_teacher, finish, model, workload

PAGE, ROWS, CHUNK = 4, 3, 8
OTHERS = {
    "mixture": {"wiring": "0_1s_1s", "n_experts": 4, "experts_per_token": 2},
    "soft caps": {"wiring": "0_1s_0", "attention_softcap": 5.0, "logit_softcap": 3.0},
    "learned positions": {"wiring": "0_1_2", "positions": "learned", "max_positions": LONGEST},
    "scaled rotations": {"wiring": "0s_1_0s", "rope_theta_local": 100.0, "qk_norm": True, "post_norms": True},
}
FAST = {"yoco", "mixture"}  # of the six forms that differ most; `make test-long` has all


def _net(name: str):
    return model(**OTHERS[name]) if name in OTHERS else model(PATTERNS[name](8))


def _cases():
    return [
        pytest.param(name, size, marks=() if name in FAST and size == 2 else pytest.mark.long)
        for name in (*PATTERNS, *OTHERS)
        for size in (1, 2, 3)
    ]


@pytest.mark.parametrize(("name", "size"), _cases())
def test_segments_give_the_hidden_states_and_pages_of_the_whole_stack(name, size):
    net = _net(name)
    config = net.config
    kinds = {layer.slides for layer in (config.layers[i] for i in config.owners)}
    names = [("sliding" if slides else "full") for slides in sorted(kinds)]
    table = 1 + np.arange(ROWS * 5, dtype=np.int32).reshape(ROWS, 5)
    cache = Paged.init(
        config,
        pages=dict.fromkeys(names, 1 + ROWS * 5),
        page_size=dict.fromkeys(names, PAGE),
        batch=ROWS,
        table_pages=dict.fromkeys(names, 5),
    )
    tables = dict.fromkeys(names, table)
    tokens_RC = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, CHUNK)).astype(np.int32)
    whole = segmented = cache
    for start, count, T in ((0, (8, 5, 0), CHUNK), (8, (1, 1, 1), 1)):  # a ragged chunk, then a decode step
        start_R = np.asarray([start, min(start, 5), 0], np.int32)
        count_R = np.asarray(count, np.int32)
        tokens_RT = tokens_RC[:, :T]
        want = jax.jit(lambda tokens_RT, kv: net.forward(tokens_RT, cache=kv, last_only=True))(
            tokens_RT, whole.with_rows(tables, start_R, count_R)
        )
        x_RTD = net.embed(tokens_RT, segmented.with_rows(tables, start_R, count_R).positions(T))
        pools = dict(segmented.pools)
        last = RowPlaces(tables, start_R + np.maximum(count_R - 1, 0), np.minimum(count_R, 1))
        for segment in last_only(cut(net, size), config.owners[-1]):
            places = last if x_RTD.shape[1] < T else RowPlaces(tables, start_R, count_R)
            owned, borrowed = ([pools[i] for i in ids] for ids in (segment.owned, segment.borrowed))
            owned = jax.tree.map(lambda x: x.copy(), owned)  # donated
            x_RTD, written = run_segment(
                config, segment.kind, cache.kinds, segment.params, x_RTD, owned, borrowed, places
            )
            pools.update(zip(segment.owned, written, strict=True))
        x_RTD = select_token(x_RTD, count_R - 1) if x_RTD.shape[1] > 1 else x_RTD
        live = count_R > 0
        np.testing.assert_allclose(
            np.asarray(net.final_norm(x_RTD))[live], np.asarray(want.hidden_BTD)[live], rtol=1e-6, atol=1e-5
        )
        whole = want.cache
        for owner, pool in pools.items():
            np.testing.assert_allclose(pool.keys, whole.pools[owner].keys, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(pool.values, whole.pools[owner].values, rtol=1e-6, atol=1e-6)
        segmented = dataclasses.replace(segmented, pools=pools)


@pytest.mark.parametrize(
    "size", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)]
)
def test_an_engine_of_segments_serves_the_tokens_of_the_whole_model(size):
    net = model()
    config = EngineConfig(
        max_slots=4,
        page_size=4,
        max_request_tok=LONGEST,
        prefill_rows=(4,),
        decode_rows=(2,),
        num_pages=65,
        window_pages=129,
        limits=Limits(chunk_tok=16, step_tok=32),
        layers_per_program=size,
        debug=True,
    )
    engine = Engine(net, config)
    programs = engine.stats().programs
    requests = workload(seed=3, n=9)
    for _ in range(2):  # the second time from the prefix cache
        check_against_teacher(requests, engine.run(requests), net)
    finish(engine)
    assert engine.stats().programs == programs, "nothing is compiled after start-up"


def test_a_stop_token_ends_a_call_of_several_steps_early():
    net = model()
    limits = Limits(chunk_tok=16, step_tok=32, decode_steps=(8, 1))
    config = EngineConfig(
        max_slots=2,
        page_size=4,
        max_request_tok=LONGEST,
        prefill_rows=(2,),
        limits=limits,
        layers_per_program=3,
    )
    [request] = workload(seed=5, n=1, max_tokens=17)
    whole = Engine(net, config).run([request])[0].output_ids
    stop = next(i for i, id in enumerate(whole) if id not in whole[:i] and i > 1)
    sampling = dataclasses.replace(request.sampling, stop_ids=(whole[stop],))
    engine = Engine(net, config)
    [output] = engine.run([dataclasses.replace(request, sampling=sampling)])
    assert output.output_ids == whole[: stop + 1]
    assert output.finish_reason == "stop"


def test_layers_that_are_alike_share_a_program():
    deep = model("_".join(map(str, range(12))))
    kinds = [segment.kind for segment in cut(deep, 3)]
    assert len(kinds) == 4
    assert len(set(kinds)) == 1
    assert [s.kind for s in last_only(cut(deep, 3), deep.config.owners[-1])] == kinds, "not worth a program"
    yoco = model(PATTERNS["yoco"](12))
    narrow = [segment.kind.last_owner for segment in last_only(cut(yoco, 3), yoco.config.owners[-1])]
    assert len([owner for owner in narrow if owner is not None]) == 1, (
        "its readers go on with one token a row"
    )
    offset = model(PATTERNS["ma_offset"](12))
    assert len({segment.kind for segment in cut(offset, 1)}) < 12


def test_a_deep_stack_is_cut_and_a_shallow_one_is_not():
    assert isinstance(make_stack(model(), -1), WholeStack)
    deep = model("_".join(map(str, range(MAX_WHOLE + 4))))
    assert isinstance(make_stack(deep, -1), SegmentedStack)
    assert isinstance(make_stack(deep), WholeStack), "faster, once it is compiled"
    assert isinstance(make_stack(deep, layers_per_program=99), WholeStack)
    assert (MAX_WHOLE + 4) % best_size(deep) == 0, "no rest that would need programs of its own"


def test_programs_of_another_cut_are_not_shared():
    net = model("0_1_2_3")
    base = EngineConfig(
        max_slots=2,
        page_size=4,
        max_request_tok=32,
        prefill_rows=(2,),
        limits=Limits(chunk_tok=8, step_tok=8),
    )
    one = Engine(net, dataclasses.replace(base, layers_per_program=2))
    again = Engine(net, dataclasses.replace(base, layers_per_program=2), programs=one.programs)
    requests = workload(seed=1, n=2, max_tokens=3)[:1]
    short = [dataclasses.replace(r, prompt_ids=r.prompt_ids[:9]) for r in requests]
    assert [o.output_ids for o in again.run(short)] == [o.output_ids for o in one.run(short)]
    with pytest.raises(ValueError, match="another model"):
        Engine(net, dataclasses.replace(base, layers_per_program=1), programs=one.programs)


def test_the_length_is_chosen_from_the_wiring_as_from_the_kinds_themselves():
    for name in ("ma_offset", "yoco", "mixture"):
        net = _net(name)
        for size in (1, 2, 3):
            spans = [_layers(net.config, span)[:2] for span in _spans(net.config, size)]
            kinds = [segment.kind for segment in cut(net, size)]
            assert [spans.index(s) for s in spans] == [kinds.index(k) for k in kinds]
