"""An engine with 8-bit weights gives the tokens of the same quantised model without an engine."""

from pathlib import Path

import pytest

from mixattn import hf
from mixattn.quantize import quantize
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.request import Request, Sampling
from tests.serving.tiny import check_against_teacher, engine, model, workload

FIXTURES = Path(__file__).parents[2] / "parity" / "fixtures"


def test_windows_shared_layers_chunks_and_prefixes_do_not_change_tokens():
    net = quantize(model())
    eng = engine(net, debug=True, limits=Limits(chunk_tok=16, step_tok=32, decode_steps=(4, 1)))
    for wave in range(2):
        requests = workload(seed=wave // 2, n=8)
        check_against_teacher(requests, eng.run(requests), net)
    assert eng.stats().hit_tok > 0


def test_a_mixture_of_experts_with_a_tied_head_is_served():
    net = quantize(model("0_1s_1s", n_experts=4, experts_per_token=2, tied=True))
    requests = workload(seed=4, n=8)
    check_against_teacher(requests, engine(net, debug=True).run(requests), net)


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3"])
def test_families_are_served(family):
    net, config = hf.load(FIXTURES / family, quantize="int8")
    requests = [
        Request(
            client="a",
            prompt_ids=[(7 * i + n) % config.vocab_size for i in range(n)],
            sampling=Sampling(max_tokens=9),
        )
        for n in (1, 7, 20, 33)
    ]
    check_against_teacher(requests, engine(net, debug=True).run(requests), net)


def test_the_engine_quantises_what_it_is_given_and_leaves_the_model_alone():
    net = model("0_1s")
    before = net.embed.table[...]
    limits = Limits(chunk_tok=16, step_tok=16, decode_steps=(1,), mixed=False)
    config = EngineConfig(max_slots=4, prefill_rows=(1,), chunk_sizes=(16,), limits=limits, quantize="int8")
    eng = Engine(net, config)
    assert eng.model_config.quantize == "int8"
    assert net.embed.table[...] is before or (net.embed.table[...] == before).all()
    assert net.config.quantize == ""
    requests = workload(seed=7, n=4)
    check_against_teacher(requests, eng.run(requests), quantize(net))


def test_an_unknown_method_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="quantize='int4' must be one of '', 'int8'"):
        EngineConfig(quantize="int4").check()
