"""An engine's settings follow from the model, the requests and the memory, or are refused in one sentence."""

import dataclasses

import pytest

from mixattn.spec import ModelConfig, kv_bytes
from serving import model_engine
from serving.request import Request, Sampling

MODEL = ModelConfig(n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=64)


def requests(count: int, prompt_tok: int = 10, **sampling) -> list[Request]:
    sampling = Sampling(**{"max_tokens": 20} | sampling)
    return [
        Request(client="a", id=str(i), prompt_ids=[1] * prompt_tok, sampling=sampling) for i in range(count)
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [("1GiB", 2**30), ("1.5 MiB", 3 * 2**19), ("2gb", 2_000_000_000), ("4096", 4096), ("10kB", 10_000)],
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert model_engine.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "1 GiBs", "-1GiB", "0", "1e9", "0.1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"not a size|at least 1"):
        model_engine.parse_bytes(text)


def test_free_memory_is_what_the_system_says():
    assert 2**20 < model_engine.free_bytes() < 2**50


def test_a_large_budget_is_not_taken_whole():
    config = model_engine.engine_config(MODEL, requests(3), kv_bytes=2**40)
    assert (config.max_slots, config.max_request_tok, config.num_pages) == (4, 64, 0)
    assert model_engine.engine_config(MODEL, requests(99), kv_bytes=2**40).max_slots == model_engine.MAX_SLOTS


@pytest.mark.parametrize("wiring", ["", "0s_1"])
def test_a_small_budget_bounds_slots_and_pools(wiring):
    model = dataclasses.replace(MODEL, kv_wiring=wiring, window=8)
    budget = 5 * kv_bytes(MODEL, 64, "float32", windowed=False)
    config = model_engine.engine_config(model, requests(99), kv_bytes=budget)
    assert 1 <= config.max_slots < model_engine.MAX_SLOTS
    page = model_engine.PAGE_TOK * kv_bytes(MODEL, 1, "float32", windowed=False) // 2  # of one layer
    layers = (1, 1) if wiring else (2, 0)
    assert page * (config.num_pages * layers[0] + config.window_pages * layers[1]) <= budget


def test_narrower_kv_make_room_for_more_requests_in_one_budget():
    budget = 3 * kv_bytes(MODEL, 64, "float32")
    wide, narrow = (
        model_engine.engine_config(MODEL, requests(99), kv_bytes=budget, kv_dtype=dtype)
        for dtype in ("", "int8")
    )
    assert (wide.max_slots, wide.kv_dtype, narrow.kv_dtype) == (2, "", "int8"), "one page is the null page"
    # Heads of 8: 32 bytes in float32, and 8 codes with 4 bytes of scale.
    assert narrow.max_slots == 7
    assert kv_bytes(MODEL, 64, "int8") * 32 == kv_bytes(MODEL, 64, "float32") * 12


def test_a_budget_for_no_request_and_a_request_too_long_are_refused():
    with pytest.raises(ValueError, match=r"needs \d+ bytes of KV; the budget is 100"):
        model_engine.engine_config(MODEL, requests(1), kv_bytes=100)
    with pytest.raises(ValueError, match=r"'0' needs 30 tokens; the longest allowed is 16"):
        model_engine.engine_config(MODEL, requests(1), kv_bytes=2**30, max_model_tok=16)
    with pytest.raises(ValueError, match="unknown policy 'best'"):
        model_engine.engine_config(MODEL, requests(1), kv_bytes=2**30, policy="best")


def test_what_requests_ask_for_is_compiled_in():
    plain = model_engine.engine_config(MODEL, requests(1), kv_bytes=2**30)
    assert (plain.penalties, plain.logprobs, plain.prompt_logprobs) == (False, -1, False)
    rich = requests(1, presence_penalty=1.0, logprobs=2, prompt_logprobs=3)
    config = model_engine.engine_config(MODEL, rich, kv_bytes=2**30)
    assert (config.penalties, config.logprobs, config.prompt_logprobs) == (True, 3, True)


def test_sampling_defaults_are_those_of_the_model():
    assert model_engine.sampling_defaults({"temperature": 0.6}) == {}  # greedy unless it samples
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0, "eos_token_id": 2}
    assert model_engine.sampling_defaults(sampled) == {"temperature": 0.6, "top_p": 0.9, "top_k": -1}
    assert model_engine.sampling_defaults({"do_sample": True}) == {"temperature": 1.0}
