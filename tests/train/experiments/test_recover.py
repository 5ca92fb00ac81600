"""Closed-form recovery: its least squares, what it leaves alone, what it returns, what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer
from mixattn.uptrain import rewire
from train.experiments import closed_form, loss, teacher
from train.experiments.recover import recover

CONFIG = ModelConfig(
    n_layers=4, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, vocab_size=40, tied=True, window=8
)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (96, 32)).astype(np.int32)


@pytest.fixture(scope="module")
def original():
    """A random model with attention that is sharp enough to matter."""
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    for block in model.blocks:
        block.attention.q.kernel[...] *= 3
        block.attention.o.kernel[...] *= 6
    return model


@pytest.fixture(scope="module")
def streams(original, tmp_path_factory):
    return teacher.store(tmp_path_factory.mktemp("streams") / "streams.npy", original, TOKENS)


def distance(one, other, tokens=TOKENS):
    """Mean divergence of the second model's next-token distribution from the first's, in nats."""
    p, q = (jax.nn.log_softmax(model(jnp.asarray(tokens))) for model in (one, other))
    return float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)))


def test_ridge_is_the_least_squares_of_the_stacked_system_in_float64():
    rng = np.random.default_rng(1)
    x, y, weight = rng.normal(size=(50, 7)), rng.normal(size=(50, 3)), rng.uniform(0.1, 2, 50)
    strength = 0.05
    damping = strength * np.mean(np.sum((x * weight[:, None]) ** 2, axis=0))
    stacked = np.vstack([x * weight[:, None], np.sqrt(damping) * np.eye(7)])
    target = np.vstack([y * weight[:, None], np.zeros((7, 3))])
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0]
    found = closed_form.ridge(*(jnp.asarray(a, jnp.float32) for a in (x, y, weight)), strength)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert not np.allclose(found, np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-2)  # the weights matter


def test_an_unchanged_wiring_with_nothing_fitted_is_the_unchanged_model_bitwise(original):
    same = rewire(original, CONFIG.wiring)
    np.testing.assert_array_equal(same(jnp.asarray(TOKENS)), original(jnp.asarray(TOKENS)))


def test_fitting_an_unchanged_wiring_changes_almost_nothing(original, streams):
    same = rewire(original, CONFIG.wiring)
    recover(same, original, streams, query_rows=4)
    assert distance(original, same) < 1e-3


# What left a window of random tokens cannot be had from the window: little returns.
@pytest.mark.parametrize(("wiring", "most"), [("swa", 1), ("cla", 0.8), ("ma_offset", 0.9)])
def test_recovery_brings_a_rewired_model_nearer_the_original_on_unseen_rows(original, streams, wiring, most):
    unseen = np.random.default_rng(9).integers(0, CONFIG.vocab_size, (8, 32)).astype(np.int32)
    student = rewire(original, wiring)
    before = distance(original, student, unseen)
    fits = recover(student, original, streams, query_rows=8)
    assert distance(original, student, unseen) < most * before
    assert [fit.layer for fit in fits] == [0, 1, 2, 3]


def test_recovery_is_the_same_bitwise_when_repeated(original, streams):
    one, other = rewire(original, "cla"), rewire(original, "cla")
    recover(one, original, streams, query_rows=4)
    recover(other, original, streams, query_rows=4)
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other))):
        np.testing.assert_array_equal(a, b)


def test_the_original_is_not_changed(original, streams):
    before = np.asarray(original(jnp.asarray(TOKENS)))
    recover(rewire(original, "cla"), original, streams, query_rows=4)
    np.testing.assert_array_equal(original(jnp.asarray(TOKENS)), before)


def test_the_streams_are_those_of_the_forward_pass(original):
    found = teacher.streams(original, jnp.asarray(TOKENS[:2]))
    expected = original.forward(jnp.asarray(TOKENS[:2])).hidden_BTD
    np.testing.assert_allclose(original.final_norm(found.inputs[-1]), expected, rtol=1e-5, atol=1e-5)
    assert found.inputs.shape == (5, 2, 32, 32)
    assert found.middles.shape == (4, 2, 32, 32)


def test_a_broken_rewire_is_caught_by_nats(original):
    rows = np.asarray(_sampled(original, TOKENS))
    broken = rewire(original, CONFIG.wiring)
    k = broken.blocks[1].attention.k.kernel
    k[...] = jnp.roll(k[...], 1, axis=1)
    assert loss.nats(broken, rows) > loss.nats(original, rows) + 0.01


def test_nats_are_the_mean_next_token_loss(original):
    logits = jax.nn.log_softmax(original(jnp.asarray(TOKENS[:, :-1])))
    picked = np.take_along_axis(np.asarray(logits, np.float64), TOKENS[:, 1:, None], axis=-1)
    assert loss.nats(original, TOKENS) == pytest.approx(-picked.mean(), rel=1e-5)


def test_other_kinds_of_models_are_refused(original, streams):
    other = Transformer(dataclasses.replace(CONFIG, qk_norm=True), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="qk_norm is True; the closed-form fits know False only"):
        recover(other, original, streams, query_rows=4)


def test_streams_of_another_depth_are_refused(original, streams):
    other = Transformer(dataclasses.replace(CONFIG, n_layers=2), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the streams are of 4 layers, the model has 2"):
        recover(other, original, streams, query_rows=4)


def _sampled(model, start_RT):
    """Rows that the model itself would write, so that it predicts them better than a broken one."""
    rows = jnp.asarray(start_RT)
    key = jax.random.key(0)
    for t in range(1, rows.shape[1]):
        token_R = jax.random.categorical(jax.random.fold_in(key, t), 3 * model(rows)[:, t - 1])
        rows = rows.at[:, t].set(token_R)
    return rows
