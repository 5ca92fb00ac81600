"""Properties of the stack that hold for any weights: windows, sharing, packing, and prefill on one token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.mixattn.tiny import TINY, logits, model, tokens, wired

T = 23


def test_a_window_as_wide_as_the_sequence_is_full_attention():
    full = nnx.split(model(wired("standard")))[1]
    np.testing.assert_array_equal(
        logits(wired("swa", window=T), tokens(), full), logits(wired("standard"), tokens(), full)
    )


def test_so_are_its_gradients():
    full = nnx.split(model(wired("standard")))[1]

    def gradient(config):
        graphdef = nnx.split(model(config))[0]

        def loss(params):
            return jnp.mean(jnp.sin(nnx.merge(graphdef, params)(tokens())))

        return jax.jit(jax.grad(loss))(full)

    wide, whole = gradient(wired("swa", window=T)), gradient(wired("standard"))
    for one, other in zip(jax.tree.leaves(wide), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8)


def test_a_narrower_window_is_not():
    full = nnx.split(model(wired("standard")))[1]
    gap = np.abs(
        logits(wired("swa", window=T - 1), tokens(), full) - logits(wired("standard"), tokens(), full)
    )
    assert gap[:, : T - 1].max() < 1e-5 < gap[:, T - 1 :].max()


@pytest.mark.parametrize("layers", [1, 2])
def test_a_sliding_stack_sees_exactly_its_reach(layers):
    """n owners of window W reach n (W - 1) tokens back and not one more."""
    config = wired("swa", n_layers=layers)
    reach = layers * (config.window - 1)
    one, other = tokens(), tokens().at[:, 0].add(1) % TINY.vocab_size
    changed = np.abs(logits(config, one) - logits(config, other)).max(axis=(0, 2)) > 0
    assert changed[reach]
    assert not changed[reach + 1 :].any()


def test_readers_have_no_key_or_value_parameters():
    state = nnx.split(model(TINY))[1]
    for layer in TINY.layers:
        names = set(state["blocks"][layer.index]["attention"])
        assert ({"k", "v"} <= names) == layer.owns
        assert {"q", "o"} <= names


def test_a_reader_equals_an_owner_with_tied_weights_and_equal_input():
    """Layer 1 reads layer 0; if layer 0 adds nothing to the residual stream, both get the same input."""
    shared, apart = wired("0_0", n_layers=2), wired("0_1", n_layers=2)
    params = nnx.split(model(apart))[1]
    blocks = params["blocks"]
    for name in ("k", "v"):
        blocks[1]["attention"][name] = blocks[0]["attention"][name]
    for part in ("attention", "ffn"):
        out = blocks[0][part]["o" if part == "attention" else "down"]["kernel"]
        blocks[0][part]["o" if part == "attention" else "down"]["kernel"] = out.replace(
            jnp.zeros_like(out[...])
        )
    reader = nnx.split(model(shared))[1]
    reader["blocks"][0], reader["embed"] = blocks[0], params["embed"]
    reader["lm_head"], reader["final_norm"] = params["lm_head"], params["final_norm"]
    reader["blocks"][1] = nnx.State(
        {**blocks[1], "attention": {k: blocks[1]["attention"][k] for k in ("q", "o")}}
    )
    np.testing.assert_allclose(logits(shared, tokens(), reader), logits(apart, tokens(), params), atol=1e-6)


def test_the_owners_gradient_sums_over_its_readers():
    """d loss / d Wk of a shared owner, against a central difference along a random direction in float32."""
    config = wired("0_0_0", n_layers=3)
    graphdef, params = nnx.split(model(config))
    weight = params["blocks"][0]["attention"]["k"]["kernel"]

    @jax.jit
    def loss(kernel):
        params["blocks"][0]["attention"]["k"]["kernel"] = weight.replace(kernel)
        out = nnx.merge(graphdef, params)(tokens())
        return jnp.mean(jnp.square(out[..., 0]))

    start = weight[...]
    way = jax.random.normal(jax.random.key(1), start.shape)
    slope = (loss(start + 1e-2 * way) - loss(start - 1e-2 * way)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(start), way), slope, rtol=2e-2)


def test_packed_documents_do_not_see_each_other():
    first, second = tokens(1, 9), tokens(1, 14, seed=1)
    packed = jnp.concatenate([first, second], axis=1)
    segment = jnp.asarray([[1] * 9 + [2] * 14])
    got = logits(TINY, packed, segment_BT=segment)
    np.testing.assert_allclose(got[:, :9], logits(TINY, first), atol=1e-5)
    np.testing.assert_allclose(got[:, 9:], logits(TINY, second), atol=1e-5)


def test_left_padding_and_neighbours_do_not_change_a_row():
    plain = tokens(1, 12)
    padded = jnp.concatenate([jnp.zeros((1, 6), jnp.int32), plain], axis=1)
    rows = jnp.concatenate([padded, tokens(1, 18, seed=3)])
    positions = jnp.stack([jnp.arange(-6, 12), jnp.arange(18)])
    graphdef, params = nnx.split(model(TINY))

    @jax.jit
    def run(params):
        m = nnx.merge(graphdef, params)
        return m.head(m.forward(rows, positions_BT=positions).hidden_BTD)

    got = np.asarray(run(params))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:1, 6:], logits(TINY, plain), atol=1e-5)


def test_permuting_the_batch_permutes_the_logits():
    rows = tokens(4)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(logits(TINY, rows[order]), logits(TINY, rows)[order], atol=1e-6)


@pytest.mark.parametrize("wiring", ["0s_0s_2_3s_3s_2", "standard", "0_0_0_0_0_0", "swa"])
def test_last_only_gives_the_last_logits(wiring):
    config = wired(wiring)
    graphdef, params = nnx.split(model(config))

    @jax.jit
    def last(params):
        m = nnx.merge(graphdef, params)
        return m.head(m.forward(tokens(), last_only=True).hidden_BTD)

    np.testing.assert_allclose(last(params), logits(config, tokens())[:, -1:], atol=1e-5)


def test_last_only_runs_one_token_a_row_above_the_last_owner():
    """By the compiler's count: with one owner at the bottom, nearly the whole stack runs on one token."""
    config = wired("0_0_0_0_0_0")
    graphdef, params = nnx.split(model(config))

    def flops(last_only):
        def run(params, tokens_BT):
            return nnx.merge(graphdef, params).forward(tokens_BT, last_only=last_only).hidden_BTD

        return jax.jit(run).lower(params, tokens(2, 64)).compile().cost_analysis()["flops"]

    assert flops(True) < 0.15 * flops(False)
