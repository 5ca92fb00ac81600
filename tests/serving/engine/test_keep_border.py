"""What an engine that evicts refuses, with the two facts that disagree."""

import dataclasses

import pytest

from serving.config import EngineConfig, KeepSettings, Limits, OffloadSettings
from serving.engine.engine import Engine
from serving.engine.programs import Programs
from serving.engine.slab_layout import SlabLayout
from serving.request import Request, RequestKeep, Sampling
from tests.serving.engine.keep_cases import SLAB
from tests.serving.tiny import model

LIMITS = Limits(chunk_tok=16, step_tok=32)


def layout(net=None, **keep):
    config = EngineConfig(keep=dataclasses.replace(SLAB, **keep), max_request_tok=64)
    config.check()
    return SlabLayout.of((net or model()).config, config)


def ask(prompt=30, new=8, **keep):
    sampling = Sampling(max_tokens=new)
    return Request(client="a", id="r", prompt_ids=[1] * prompt, sampling=sampling, keep=RequestKeep(**keep))


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ({"slab_tok": -1}, "keep.slab_tok is -1; it must be at least 0"),
        ({"budget_tok": 40}, "keep.budget_tok is 40, and keep.slab_tok is 12"),
        ({"budget_tok": 4, "budget_share": 0.5}, "keep.budget_tok is 4 and keep.budget_share 0.5; give one"),
        ({"budget_share": 1.5}, "budget is a share of 1.5; it must lie in"),
        ({"recent_tok": -1}, "recent is -1 keys; at least 1 is needed"),
        ({"scorer": "attention"}, "scorer 'attention' is not one of h2o"),
        ({"scorers": ("expected",)}, "the scorer expected reads all queries of a prompt at once"),
        ({"window": 20}, "fewer than the 20 queries that snapkv observes"),
        ({"sinks": 12, "scorers": ()}, "12 sinks and a recent key need 13"),
        ({"snapshots": -1}, "keep.snapshots is -1"),
    ],
)
def test_settings(keep, sentence):
    with pytest.raises(ValueError, match=sentence):
        layout(**keep)


def test_models_without_full_owners_and_rolling_without_rope():
    with pytest.raises(ValueError, match="no layer with full attention"):
        layout(model("0s_1s"))
    learned = model("0_1s", positions="learned", max_positions=64)
    with pytest.raises(ValueError, match='positions="rolling" rotates keys, and the model has learned'):
        layout(learned, positions="rolling", scorers=())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"layers_per_program": 2}, "keep.slab_tok is 12 and layers_per_program 2"),
        (
            {"offload": OffloadSettings(device_memory_gb=1)},
            "is 12 and offload.device_memory_gb 1",
        ),
    ],
)
def test_engines_that_cannot_evict(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        EngineConfig(keep=SLAB, **config).check()


@pytest.mark.parametrize(
    ("request_", "settings", "sentence"),
    [
        (ask(scorer="tova"), {}, "asks for the scorer 'tova'; compiled in are h2o, snapkv, streaming"),
        (ask(budget=20), {}, "asks for 20 keys a layer, a slab holds 12"),
        (ask(everything=True), {"full_decode": False}, "keeps all of its 37 tokens, a slab holds 12"),
        (ask(scorer="snapkv"), {}, "cuts its prompt to 12 keys and grows to 19"),
        (ask(budget=2, scorer="snapkv"), {}, "fewer than the 3 queries that snapkv observes"),
        (ask(prompt=4, new=40, budget=0.1), {}, "0.1 of a prompt of 4 tokens is 0 keys"),
    ],
)
def test_requests(request_, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        layout(**settings).plan(request_)


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ({"budget": 0}, "keep.budget is 0"),
        ({"budget": 1.5}, "keep.budget is 1.5"),
        ({"budget": True}, "keep.budget is True"),
        ({"budget": float("nan")}, "keep.budget is nan"),
        ({"scorer": 3}, "keep.scorer is 3"),
        ({"everything": True, "budget": 8}, "keep.everything evicts nothing"),
    ],
)
def test_what_a_request_may_say(keep, sentence):
    with pytest.raises(ValueError, match=sentence):
        RequestKeep(**keep)


def test_a_budget_in_an_engine_that_does_not_evict_is_refused_before_anything_is_queued(monkeypatch):
    monkeypatch.setattr(Programs, "compile", lambda self, *args: None)
    eng = Engine(model("0_1s"), EngineConfig(max_slots=2, page_size=4, max_request_tok=64, limits=LIMITS))
    with pytest.raises(ValueError, match=r"config.keep.slab_tok is 0"):
        eng.submit(ask(budget=8))
    assert not eng.live


@pytest.mark.parametrize(("prompt", "share", "keys"), [(200, 0.2, 40), (50, 0.1, 5), (30, 0.3, 9)])
def test_a_share_whose_float_lies_below_a_whole_number_is_that_number(prompt, share, keys):
    plan = layout(slab_tok=64, recent_tok=2, scorers=()).plan(ask(prompt=prompt, new=8, budget=share))
    assert [sum(cut) for cut in plan.cut] == [keys]


def test_the_request_that_fits_its_slab_is_exact_and_votes_on_nothing():
    plan = layout().plan(ask(prompt=5, new=8))
    assert (plan.votes, plan.evicted(5, 12)) == (False, 0)


def test_layers_that_evict_run_in_one_program_however_deep_the_stack(monkeypatch):
    monkeypatch.setattr(Programs, "compile", lambda self, *args: None)
    config = EngineConfig(
        max_slots=2,
        page_size=4,
        max_request_tok=32,
        limits=Limits(chunk_tok=8, step_tok=8, decode_steps=(1,)),
        prefill_rows=(1,),
        keep=KeepSettings(slab_tok=8),
    )
    programs = Engine(model(), config).programs
    calls = {"prefill", "decode", "prefill votes", "decode slabs", "decode exact", "settle"}
    assert {name[0] for name, _ in programs.stack.listing(programs)} == calls
