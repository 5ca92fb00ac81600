"""K/V in bfloat16 or 8-bit codes: what is read is what was stored, and the engine attends to that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn.cache import narrow
from mixattn.cache.narrow_sequence import NarrowSequence
from mixattn.quantize import quantize
from serving.config import EngineConfig
from serving.engine.invariants import check_idle
from tests.serving.tiny import engine, model, workload


def teacher(net, kv_dtype):
    """Greedy tokens of the whole sequence anew for each token, its K/V stored and read again."""
    graphdef, params = nnx.split(net)

    @jax.jit
    def logits(params, tokens_BT):
        merged = nnx.merge(graphdef, params)
        return merged.head(merged.forward(tokens_BT, cache=NarrowSequence({}, stored=kv_dtype)).hidden_BTD)

    def answer(prompt, n):
        ids = list(prompt)
        for _ in range(n):
            padded = np.zeros((1, 64), np.int32)
            padded[0, : len(ids)] = ids
            ids.append(int(np.argmax(logits(params, padded)[0, len(ids) - 1])))
        return ids[len(prompt) :]

    return answer


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_engine_attends_to_keys_and_values_as_they_are_stored(dtype):
    """Windows, shared layers, prefixes and poison in freed pages included."""
    net = quantize(model()) if dtype == "int8" else model()
    eng = engine(net, debug=True, kv_dtype=dtype)
    answer = teacher(net, dtype)
    for _ in range(2):
        requests = workload(seed=0, n=7)
        for request, output in zip(requests, eng.run(requests)):
            assert output.output_ids == answer(request.prompt_ids, request.sampling.max_tokens)
    assert eng.stats().hit_tok > 0
    check_idle(eng)


def test_bytes_are_a_half_and_a_quarter_with_the_scales():
    plain, half, codes = (engine(model("0_1s"), kv_dtype=dtype) for dtype in ("", "bfloat16", "int8"))
    sizes = [sum(pool.nbytes for pool in e.state.cache.pools.values()) for e in (plain, half, codes)]
    assert sizes[0] == 2 * sizes[1]
    assert sizes[2] * 4 * 8 == sizes[0] * (8 + 4)  # heads of 8, and 4 bytes of scale


def test_codes_come_back_within_half_a_step_and_stored_bytes_of_minus_one_are_nan():
    x_BTKH = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2, 8)), jnp.float32)
    stored = narrow.narrowed(x_BTKH, "int8")
    assert stored.shape == (2, 3, 2, 12)
    step = np.abs(x_BTKH).max(axis=-1, keepdims=True) / 127
    assert (np.abs(narrow.widened(stored, "float32") - x_BTKH) <= 0.501 * step).all()
    assert (np.asarray(narrow.widened(jnp.zeros_like(stored), "float32")) == 0).all()
    assert np.isnan(narrow.widened(jnp.full_like(stored, -1), "float32")).all()


def test_an_unknown_type_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="kv_dtype='int4' must be one of '', 'bfloat16', 'int8'"):
        EngineConfig(kv_dtype="int4").check()
