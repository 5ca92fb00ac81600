"""Sliding layers with sinks see their window and the first positions, in every path, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import generate, hf, kv_bytes
from mixattn.cache import Contiguous, Paged, Ring
from mixattn.cache.kept import check_model
from mixattn.cache.protocol import slot_of, slot_positions
from mixattn.cache.sinks import attend_layer
from mixattn.keep import Keep
from mixattn.spec import Layer
from mixattn.uptrain import rewire
from tests.mixattn.cache.test_cache import prepared, step
from tests.mixattn.tiny import SHORT, logits, model, tokens

SINKS = 3
CONFIG = dataclasses.replace(SHORT, sinks=SINKS)
W, T, CAPACITY = SHORT.window, 2 * SHORT.window + SINKS + 4, 24
CACHES = {"contiguous": Contiguous.init, "ring": Ring.init}


def oracle(q_BTNH, k_BSKH, v_BSKH, see_BTS) -> np.ndarray:
    """Attention over the keys that `see_BTS` names, in float64; 0 for a query that sees none."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    score = np.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    weight = np.exp(score - score.max(-1, keepdims=True)) * see_BTS[:, None]
    weight /= np.maximum(weight.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bnts,bsnh->btnh", weight, v)


def seen(q_pos_BT, k_pos_BS, sinks: int = SINKS) -> np.ndarray:
    age = q_pos_BT[:, :, None] - k_pos_BS[:, None]
    inside = (age < W) | (k_pos_BS[:, None] < sinks)
    return (age >= 0) & inside & (k_pos_BS[:, None] >= 0)


def operands(S: int = T) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(1), 3)
    return [jax.random.normal(key, (2, S, heads, 8)) for key, heads in zip(keys, (4, 2, 2))]


LAYER = Layer(0, 0, W, SINKS)
PLAIN = np.broadcast_to(np.arange(T), (2, T))


def test_a_whole_sequence_is_the_dense_softmax_over_window_and_sinks():
    q, k, v = operands()
    got = attend_layer(LAYER, q, k, v)
    np.testing.assert_allclose(got, oracle(q, k, v, seen(PLAIN, PLAIN)), atol=2e-6)
    # Negative controls: one sink fewer, and one more, is another result.
    for wrong in (SINKS - 1, SINKS + 1):
        assert np.abs(got - oracle(q, k, v, seen(PLAIN, PLAIN, wrong))).max() > 1e-2


def test_positions_in_any_order_with_empty_slots_and_padding():
    q, k, v = operands()
    order = np.random.default_rng(0).permutation(T)
    pos = np.broadcast_to(np.where(order == 5, -1, order), (2, T))
    q_pos = np.broadcast_to(np.where(np.arange(T) == 1, -1, np.arange(T)), (2, T))
    positions = {"q_pos_BT": jnp.asarray(q_pos), "k_pos_BS": jnp.asarray(pos)}
    got = attend_layer(LAYER, q, k, v, **positions)
    np.testing.assert_allclose(got, oracle(q, k, v, seen(q_pos, pos)), atol=2e-6)


def test_the_sinks_of_a_packed_document_are_its_own_first_tokens():
    q, k, v = operands()
    segment = np.broadcast_to(np.repeat([4, 7], [6, T - 6]), (2, T))
    at = np.where(PLAIN < 6, PLAIN, PLAIN - 6)
    same = segment[:, :, None] == segment[:, None]
    got = attend_layer(LAYER, q, k, v, segment_q_BT=jnp.asarray(segment), segment_k_BS=jnp.asarray(segment))
    np.testing.assert_allclose(got, oracle(q, k, v, seen(at, at) & same), atol=2e-6)


def test_gradients_are_those_of_one_softmax():
    q, k, v = operands()
    see = jnp.asarray(seen(PLAIN, PLAIN))

    def dense(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        score = jnp.where(see[:, None], jnp.einsum("btnh,bsnh->bnts", q, k) * 8**-0.5, -jnp.inf)
        return jnp.sum(jnp.sin(jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(score, -1), v)))

    want = jax.grad(dense, (0, 1, 2))(q, k, v)
    got = jax.grad(lambda *x: jnp.sum(jnp.sin(attend_layer(LAYER, *x))), (0, 1, 2))(q, k, v)
    for one, other in zip(got, want, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("S", [2, SINKS, SINKS + 1, W, W + SINKS])
def test_every_slot_holds_the_sinks_or_the_newest_positions(S):
    for end in range(S + 9):
        held = np.asarray(slot_positions(jnp.asarray([end]), S, SINKS))[0]
        sinks = min(SINKS, S - 1)
        turns = range(max(sinks, end - (S - sinks)), end)
        assert sorted(held[held >= 0]) == [*range(min(sinks, end)), *turns]
        for slot in np.flatnonzero(held >= 0):
            assert int(slot_of(jnp.asarray(held[slot]), S, SINKS)) == slot


@pytest.mark.parametrize("chunk", [1, 4, W, T])
@pytest.mark.parametrize("kind", CACHES)
def test_chunked_prefill_is_the_teacher_forced_forward(kind, chunk):
    rows, cache, got = tokens(2, T), CACHES[kind](CONFIG, 2, CAPACITY), []
    for at in range(0, T, chunk):
        part = rows[:, at : at + chunk]
        count_B = jnp.full(2, part.shape[1], jnp.int32)
        padded = jnp.pad(part, ((0, 0), (0, chunk - part.shape[1])))
        out, cache = step(CONFIG, padded, prepared(cache, jnp.full(2, at, jnp.int32), count_B))
        got.append(out[:, : part.shape[1]])
    want = logits(CONFIG, rows)
    np.testing.assert_allclose(np.concatenate(got, 1), want, atol=2e-5)
    # Negative control: without sinks the later tokens have other logits.
    assert np.abs(want - logits(SHORT, rows))[:, W + SINKS :].max() > 1e-3


@pytest.mark.parametrize("kind", CACHES)
def test_rows_of_different_lengths_decode_as_if_alone(kind):
    length_B = jnp.asarray([1, SINKS, W + 1, T], jnp.int32)
    rows = tokens(4, CAPACITY)
    want = logits(CONFIG, rows)
    prompt = jnp.where(jnp.arange(T)[None] < length_B[:, None], rows[:, :T], 60)
    cache = CACHES[kind](CONFIG, 4, CAPACITY)
    out, cache = step(CONFIG, prompt, prepared(cache, jnp.zeros(4, jnp.int32), length_B), last_only=True)
    np.testing.assert_allclose(out[:, 0], want[np.arange(4), length_B - 1], atol=2e-5)
    for _ in range(CAPACITY - T):
        token_B1 = jnp.take_along_axis(rows, length_B[:, None], axis=1)
        out, cache = step(CONFIG, token_B1, prepared(cache, length_B, jnp.ones(4, jnp.int32)))
        np.testing.assert_allclose(out[:, 0], want[np.arange(4), length_B], atol=2e-5)
        length_B = length_B + 1


def test_generate_continues_as_the_forward_pass_would():
    prompt = tokens(1, 7)[0].tolist()
    new = generate(model(CONFIG), [prompt], max_new_tokens=9)[0]
    rows = jnp.asarray([prompt + new])
    assert new == logits(CONFIG, rows)[0, len(prompt) - 1 : -1].argmax(-1).tolist()


def test_a_ring_holds_the_bytes_that_the_formula_counts():
    for tokens_held in (2, W, W + SINKS, 40):
        cache = Ring.init(CONFIG, 1, tokens_held)
        assert sum(cache.nbytes().values()) == kv_bytes(CONFIG, tokens_held, "float32")


def test_sinks_that_reach_as_far_as_the_window_hides_are_full_attention():
    wide = dataclasses.replace(SHORT, sinks=T)
    full = dataclasses.replace(SHORT, kv_wiring="0_1_0")
    graph_params = nnx.split(model(full))[1]
    np.testing.assert_allclose(
        logits(wide, tokens(2, T), graph_params), logits(full, tokens(2, T)), atol=2e-5
    )


def test_caches_that_keep_windows_only_refuse_in_one_sentence():
    pages = {"full": 4, "sliding": 4}
    with pytest.raises(ValueError, match="keeps 3 sinks beside its window of 5"):
        Paged.init(CONFIG, pages=pages, page_size=pages, batch=1, table_pages=pages)
    with pytest.raises(ValueError, match="the config has 3 sinks"):
        check_model(Keep(), CONFIG)


def test_a_saved_model_keeps_its_sinks_and_another_family_refuses_them(tmp_path):
    hf.save(model(CONFIG), tmp_path / "native")
    assert hf.load(tmp_path / "native")[1].sinks == SINKS
    alone = dataclasses.replace(CONFIG, kv_wiring="swa")
    with pytest.raises(ValueError, match="mistral cannot express sinks=3"):
        hf.save(model(alone), tmp_path / "other", architecture="mistral")
    with pytest.raises(ValueError, match="sinks is -1; it must be at least 0"):
        dataclasses.replace(CONFIG, sinks=-1)


def test_rewiring_adds_sinks_and_otherwise_keeps_them():
    with_sinks = rewire(model(SHORT), SHORT.kv_wiring, sinks=2, init="owner")
    assert with_sinks.config.sinks == 2
    assert rewire(with_sinks, SHORT.kv_wiring, init="owner").config.sinks == 2
    assert rewire(with_sinks, SHORT.kv_wiring, sinks=0, init="owner").config == SHORT
