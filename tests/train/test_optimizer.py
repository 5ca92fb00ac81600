"""Schedules, which parameters each optimizer updates, which decay and which are frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixattn import ModelConfig
from train import objective, optimizer
from train.optimizer import OptimizerConfig

CONFIG = ModelConfig(
    n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=20, qk_norm=True
)


@pytest.fixture(scope="module")
def params():
    return objective.init_params(CONFIG, 0)


def lr_scales(config, steps):
    at = jax.vmap(lambda step: optimizer.lr_scale(config, step, jnp.int32(steps)))
    return np.asarray(at(jnp.arange(steps)))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "constant"])
def test_a_schedule_warms_up_to_the_peak_and_ends_where_it_says(schedule):
    config = OptimizerConfig(schedule=schedule, warmup=10, final_lr_ratio=0.1, decay_share=0.25)
    got = lr_scales(config, 100)
    np.testing.assert_allclose(got[:10], (np.arange(10) + 1) / 10, rtol=1e-6)
    assert got.max() == pytest.approx(1, rel=1e-6)
    end = 1.0 if schedule == "constant" else 0.1
    assert got[-1] == pytest.approx(end, abs=0.04)
    assert (np.diff(got[10:]) <= 1e-6).all()
    if schedule == "wsd":
        assert (got[10:75] == 1).all()


def test_linear_and_cosine_are_the_schedules_of_optax():
    steps, warm = 60, 6
    for name, theirs in (
        ("linear", optax.linear_schedule(1.0, 0.02, steps - warm)),
        ("cosine", optax.cosine_decay_schedule(1.0, steps - warm, alpha=0.02)),
    ):
        got = lr_scales(OptimizerConfig(schedule=name, warmup=warm, final_lr_ratio=0.02), steps)
        np.testing.assert_allclose(got[warm:], [theirs(i) for i in range(steps - warm)], atol=1e-6)


def test_a_stage_shorter_than_its_warm_up_stays_finite():
    for name in ("linear", "cosine", "wsd"):
        assert np.isfinite(lr_scales(OptimizerConfig(schedule=name, warmup=30), 5)).all()


def test_matrices_are_maps_between_widths_and_nothing_else(params):
    matrices = {path for path, x in params.items() if optimizer.is_matrix(path, x)}
    assert matrices == {p for p in params if p.endswith(".kernel") and p != "lm_head.kernel"}
    assert "embed.table" not in matrices


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_weight_decay_shrinks_matrices_and_leaves_norms_and_embeddings(params, name):
    tx = optimizer.build(OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for path, update in updates.items():
        want = -0.05 * params[path] if optimizer.is_matrix(path, params[path]) else 0 * params[path]
        np.testing.assert_allclose(update, want, atol=1e-7, err_msg=path)


def test_muon_moves_matrices_by_orthogonal_steps_and_adam_the_rest(params):
    tx = optimizer.build(OptimizerConfig(name="muon", learning_rate=1.0, adam_learning_rate=0.25))
    keys = jax.random.split(jax.random.key(1), len(params))
    gradient = {path: jax.random.normal(k, x.shape) for k, (path, x) in zip(keys, params.items())}
    updates, _ = tx.update(gradient, tx.init(params), params)
    for path, update in updates.items():
        if optimizer.is_matrix(path, params[path]):
            scale = np.sqrt(max(1, update.shape[1] / update.shape[0]))
            values = np.linalg.svd(np.asarray(update) / scale, compute_uv=False)
            assert values.min() > 0.5, path  # five Newton-Schulz steps give singular values of 0.7 to 1.2
            assert values.max() < 1.5, path
        else:
            # The first step of (Nesterov) Adam has one size everywhere.
            np.testing.assert_allclose(np.abs(update), np.abs(update).mean(), rtol=1e-3, err_msg=path)
            assert np.abs(update).mean() < 0.5


def test_experts_are_orthogonalised_one_by_one():
    weights = {"blocks.0.ffn.up": jax.random.normal(jax.random.key(0), (3, 8, 16))}
    tx = optimizer.build(OptimizerConfig(name="muon", learning_rate=1.0))
    updates, _ = tx.update(weights, tx.init(weights), weights)
    for expert in np.asarray(updates["blocks.0.ffn.up"]):
        assert np.linalg.svd(expert / np.sqrt(2), compute_uv=False).min() > 0.5


def test_training_attention_only_means_attention_and_its_norm(params):
    moving = {path for path in params if optimizer.is_trainable(path, "attention")}
    assert moving == {path for path in params if ".attention" in path}
    assert {p for p in params if optimizer.is_trainable(p, "all")} == set(params)
