"""Whatever an engine that evicts does to be fast, its tokens and its keys are those of dense masks."""

import dataclasses
import random

import numpy as np
import pytest

from serving.config import EngineConfig, KeepSettings, Limits
from serving.engine.engine import Engine
from serving.request import Request, RequestKeep, Sampling
from tests.serving.engine.keep_cases import SLAB, asked, kept_engine, mixed, serve
from tests.serving.tiny import LONGEST, WIRING, check_against_teacher, engine, finish, model, workload


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
@pytest.mark.parametrize("steps", [(1,), (4, 1), (8, 4, 1)], ids=lambda s: f"N{s[0]}")
def test_steps_overlap_and_reuse_change_neither_tokens_nor_keys(steps, overlap):
    limits = Limits(chunk_tok=16, step_tok=32, decode_steps=steps)
    eng = kept_engine(limits=limits, overlap=overlap)
    for _ in range(2):
        serve(eng, mixed())
        finish(eng)
    stats = eng.stats()
    assert stats.hit_tok > 0
    assert stats.evictions > 0
    assert (stats.ahead > 0) == overlap


@pytest.mark.parametrize("chunk", [1, 7, 4, 48], ids=["1", "7", "page", "whole"])
def test_chunks_change_neither_tokens_nor_keys(chunk):
    limits = Limits(chunk_tok=chunk, step_tok=max(chunk, 8))
    serve(kept_engine(limits=limits), mixed(seed=2, n=6))


def test_a_hit_at_a_snapshot_gives_the_keys_of_a_cold_run_and_no_snapshot_is_no_hit():
    eng = kept_engine()
    stem = workload(seed=5)[0].prompt_ids[:20]

    def ask(*own):
        return [Request(client="a", prompt_ids=[*stem, *own], sampling=Sampling(max_tokens=10))]

    serve(eng, ask(1, 2, 3, 4, 5))
    (first,) = serve(eng, ask(9, 8, 7))  # the common prefix ends inside a node, where no snapshot is
    assert (first.hit_tok, eng.stats().hits_lost) == (0, 1)
    (second,) = serve(eng, ask(6, 6, 6))  # the one before left a snapshot where it branched off
    assert (second.hit_tok, eng.stats().hits_lost) == (20, 1)
    (longer,) = serve(eng, ask(1, 2, 3, 4, 5, 6, 7, 8))  # a whole prompt's end has one too
    assert longer.hit_tok == 24
    finish(eng)


def test_outputs_of_one_prompt_compute_it_once_and_have_a_slab_each():
    eng = kept_engine()
    prompt = workload(seed=3)[0].prompt_ids[:21]
    serve(eng, [Request(client="a", prompt_ids=prompt, sampling=Sampling(max_tokens=12, n=3))])
    stats = eng.stats()
    assert stats.prompt_tok == 63
    assert stats.hit_tok == 40, "the second and third begin at the snapshot at the end of its whole pages"


@pytest.mark.parametrize("every", [1, 3])
def test_a_row_that_lost_its_slab_replays_its_outputs_and_keeps_the_same_keys(every):
    rng = random.Random(every)

    def retract(eng):
        old = [id for id, e in eng.scheduler.running.items() if not e.prefilling and e.preemptions < 2]
        if old and eng.stats().steps % every == 0 and eng._in_flight is None:
            eng.scheduler.preempt(rng.choice(old), eng.clock())

    eng = kept_engine(limits=Limits(chunk_tok=16, step_tok=32, decode_steps=(4, 1)))
    serve(eng, mixed(seed=3), retract)
    assert eng.stats().preemptions > 2
    finish(eng)


def test_after_a_lost_state_rows_replay():
    hits = []

    def lose(eng):
        if eng.stats().steps in (6, 13) and eng.stats().steps not in hits:
            hits.append(eng.stats().steps)
            eng.scheduler.drop_all_pages(eng.clock())
            eng.state = eng.programs.fresh_state()

    serve(kept_engine(), mixed(seed=4), lose)
    assert hits


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
def test_a_cancelled_row_in_any_phase_spoils_nobody(overlap):
    rng = random.Random(1)

    def cancel(eng):
        ids = [name for name in eng.streams if name.startswith("x")]
        if ids and rng.random() < 0.5:
            eng.cancel(rng.choice(ids))

    eng = kept_engine(overlap=overlap)
    victims = [dataclasses.replace(r, id=f"x{i}") for i, r in enumerate(workload(seed=8, n=8))]
    serve(eng, [r for pair in zip(mixed(seed=6), victims) for r in pair], cancel)
    assert eng.stats().finished.get("cancel", 0) > 2
    finish(eng)


@pytest.mark.long
@pytest.mark.parametrize("scorer", ["tova", "h2o_mean", "snapkv", "recent", "knorm"])
def test_every_scorer_keeps_what_its_definition_says(scorer):
    keep = dataclasses.replace(SLAB, scorer=scorer, scorers=())
    requests = mixed(seed=1, n=5)[::3]
    if scorer == "snapkv":
        requests = [
            dataclasses.replace(r, sampling=Sampling(max_tokens=6), keep=RequestKeep(budget=7))
            for r in requests
        ]
        keep = dataclasses.replace(keep, when="prompt")
    serve(kept_engine(model("0_1s"), keep=keep), requests)


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [{"scope": "owner_only"}, {"promotion": "always"}, {"sinks": 2}],
    ids=lambda change: str(*change.items()),
)
def test_scope_promotion_and_sinks(change):
    keep = dataclasses.replace(SLAB, scorers=("streaming",), **change)
    serve(kept_engine(keep=keep), mixed(seed=1, n=5))


RARE = ("standard", "ma_offset", "yoco", "ma_pairs", "0s_1_0s_1")


@pytest.mark.long
@pytest.mark.parametrize("name", RARE)
def test_wirings(name):
    try:
        net = model(name) if name[0].isdigit() else model(name, n_layers=6)
    except ValueError as why:
        pytest.skip(str(why))
    keep = dataclasses.replace(SLAB, scorers=("streaming",))
    serve(kept_engine(net, keep=keep), mixed(seed=1, n=5))


@pytest.mark.long
def test_a_mixture_of_experts():
    net = model("0_1s_1s", n_experts=4, experts_per_token=2)
    serve(kept_engine(net, keep=dataclasses.replace(SLAB, scorers=("streaming",))), mixed(seed=4, n=5))


@pytest.mark.long
def test_few_rows_decode_in_smaller_programs():
    eng = kept_engine(
        model("0_1s"), decode_rows=(1, 2), keep=dataclasses.replace(SLAB, scorers=("streaming",))
    )
    serve(eng, mixed(seed=9, n=7))


# ---- exactness ----


def test_a_budget_no_smaller_than_the_request_gives_todays_engine_bit_by_bit():
    """Without cached prefixes: pages that rows share are merged in another order than those of one row."""
    config = EngineConfig(
        max_slots=4,
        page_size=4,
        max_request_tok=LONGEST,
        prefill_rows=(4,),
        chunk_sizes=(16,),
        reuse=False,
        logprobs=3,
        limits=Limits(chunk_tok=16, step_tok=32, decode_steps=(4, 1)),
    )
    requests = workload(seed=0, n=8, logprobs=3)
    plain = Engine(model("0_1s"), config).run(requests)
    config = dataclasses.replace(config, keep=KeepSettings(slab_tok=LONGEST - 1, full_decode=False))
    kept = Engine(model("0_1s"), config).run(requests)
    for a, b in zip(plain, kept, strict=True):
        assert a.output_ids == b.output_ids
        assert a.logprobs == b.logprobs, "to the last bit"


def test_requests_that_keep_everything_decode_beside_those_that_evict():
    eng = kept_engine()
    requests = workload(seed=2, n=8)
    whole = asked(requests, everything=True)
    check_against_teacher(requests, eng.run(whole))
    both = [r for pair in zip(mixed(seed=7), whole) for r in pair]
    serve(eng, both)
    finish(eng)


def test_the_first_token_does_not_depend_on_the_budget():
    firsts = []
    for budget in (6, 9, 12):
        outputs = kept_engine().run(asked(workload(seed=0, n=8), budget=budget))
        firsts.append([output.output_ids[0] for output in outputs])
    assert firsts[0] == firsts[1] == firsts[2]


def test_full_pages_are_back_in_the_step_that_settles_and_bytes_stay_constant():
    eng = kept_engine(reuse=False)
    eng.submit(Request(client="a", prompt_ids=list(range(40)), sampling=Sampling(max_tokens=20)))
    held = []
    while eng.live:
        eng.step()
        req = next(iter(eng.scheduler.running.values()), None)
        if req is not None and req.kv.settled:
            held.append(eng.stats().pages["full"][0])
    assert held
    assert set(held) == {0}


def test_the_engine_without_slabs_has_the_programs_it_had():
    eng = engine(model())
    assert eng.state.kept is None
    assert {name[0] for name in eng.programs.compiled} <= {"prefill", "decode"}


def test_nan_weights_end_their_request_and_spoil_no_neighbours_slab():
    import jax
    from flax import nnx

    net = model("0_1s")
    graphdef, params = nnx.split(net)
    poisoned = nnx.merge(graphdef, jax.tree.map(lambda x: x, params))
    table = np.array(poisoned.embed.table[...])
    table[63] = np.nan
    poisoned.embed.table[...] = jax.numpy.asarray(table)
    eng = kept_engine(poisoned, keep=dataclasses.replace(SLAB, scorers=("streaming",)))
    eng.test_model = net
    rng = random.Random(0)
    good = [
        Request(
            client="a", prompt_ids=[rng.randrange(63) for _ in range(20)], sampling=Sampling(max_tokens=8)
        )
        for _ in range(3)
    ]
    bad = Request(client="b", prompt_ids=[*range(20), 63], sampling=Sampling(max_tokens=8))
    eng.submit(bad)
    try:
        outputs = serve(eng, good)
    finally:
        assert eng.stats().finished.get("error", 0) >= 1
    assert [o.finish_reason for o in outputs] == ["length"] * 3


def test_wiring_has_a_full_owner_with_a_reader():
    assert WIRING.split("_")[5] == "2"


@pytest.mark.long
def test_rolling_positions_give_the_tokens_of_generation_without_a_server():
    from mixattn import generate
    from mixattn.keep import Keep

    net = model("0_1s")
    keep = KeepSettings(slab_tok=12, scorer="streaming", recent_tok=4, positions="rolling", full_decode=False)
    eng = kept_engine(net, keep=keep)
    same = Keep(scorer="streaming", budget=12, recent=4, positions="rolling")
    for request in workload(seed=1, n=4):
        [output] = eng.run([request])
        want = generate(net, [list(request.prompt_ids)], request.sampling.max_tokens, keep=same)
        assert output.output_ids == list(want[0])


@pytest.mark.long
@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
def test_narrow_keys_go_to_slabs_as_they_are_stored(kv_dtype):
    eng = kept_engine(model("0_1s"), kv_dtype=kv_dtype, keep=dataclasses.replace(SLAB, scorers=("knorm",)))
    requests = workload(seed=1, n=6)
    outputs = eng.run(requests)
    assert all(output.finish_reason == "length" for output in outputs)
    assert eng.stats().evictions > 0
    finish(eng)
