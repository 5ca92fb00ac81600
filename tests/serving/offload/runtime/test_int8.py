"""Experts in 8 bits: the same answers however they arrive, near to the float model's, and in the plan."""

import dataclasses

import numpy as np
import pytest

from serving import EngineConfig
from serving.config import OffloadSettings
from serving.loading import load_engine
from serving.offload.machine_plan import GIB, MachineRates, MachineWorkload
from serving.offload.runtime import build
from serving.offload.runtime.buffers import Slots
from serving.offload.runtime.cache import ExpertCache
from serving.offload.runtime.caching import CacheRunner
from tests.serving.offload.runtime import tiny


@pytest.fixture(scope="module")
def small(engines):
    return dataclasses.replace(engines.checkpoint("plain"), quantize="int8")


def test_answers_do_not_depend_on_how_rounded_experts_arrive_and_are_near_the_float_models(engines, small):
    engine = tiny.engine(small)
    want = tiny.answers(engine, tiny.resident(small))
    for schedule in ("s1", "s3"):
        assert tiny.answers(engine, tiny.streaming(small, schedule=schedule)) == want
    slots = Slots(3, small, tiny.source_of(small), poison=True)
    shape = {"n_layers": small.config.n_layers, "n_experts": small.config.n_experts}
    assert tiny.answers(engine, CacheRunner(slots, ExpertCache(3), streams=small.streams, **shape)) == want
    exact = [logprobs[0] for _, logprobs in engines.resident("plain")]
    rounded = [logprobs[0] for _, logprobs in want]
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert rounded != exact


def test_more_experts_fit_and_the_plan_counts_what_pages_pass_through(engines, small):
    plans = {}
    for checkpoint in (engines.checkpoint("plain"), small):
        rates, workload = MachineRates(1e9, 1e-3, 1e-5), MachineWorkload(1, 64)
        fixed = build.planner(checkpoint, rates, workload, GIB).fixed_bytes(1, 1)
        memory = sum(fixed.values()) + 4 * checkpoint.page_bytes
        plans[checkpoint.quantize] = build.planner(checkpoint, rates, workload, memory).best("cache")
    assert plans["int8"].slots >= 11 > plans[""].slots == 4
    assert plans["int8"].bytes["staging"] == small.page_bytes + small.slot_bytes
    assert "staging" not in plans[""].bytes


def test_a_server_asks_for_it_in_its_config(engines, small):
    offload = OffloadSettings(device_memory_gb=0.3, quantize="int8")
    made = load_engine(small.path, EngineConfig(max_slots=2, max_request_tok=64, logprobs=2, offload=offload))
    (output,) = made.run(tiny.REQUESTS[:1])
    assert len(output.output_ids) == 3


def test_rounding_of_models_in_memory_is_not_mistaken_for_it(small):
    config = EngineConfig(max_slots=2, max_request_tok=64, offload=OffloadSettings(device_memory_gb=0.3))
    with pytest.raises(ValueError, match=r"quantize=int8 is for models in memory; offload\.quantize"):
        load_engine(small.path, config, quantize="int8")
