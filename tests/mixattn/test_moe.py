"""The mixture layer against a float64 loop over tokens, and its dispatch paths against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn.moe import MoE, load
from tests.mixattn.tiny import logits, model, tokens, wired

SPARSE = wired("0_1s", n_layers=2, n_experts=5, experts_per_token=2, d_ff=24)
X = 37


@functools.cache
def layer(**fields) -> MoE:
    return MoE(dataclasses.replace(SPARSE, **fields), nnx.Rngs(3))


@functools.partial(jax.jit, static_argnames=("graphdef", "path"))
def _call(graphdef, params, args, path):
    return getattr(nnx.merge(graphdef, params), path)(*args)


def call(moe: MoE, *args, path="__call__"):
    return _call(*nnx.split(moe), args, path=path)


def inputs(X=X) -> jax.Array:
    return jax.random.normal(jax.random.key(7), (1, X, SPARSE.d_model))


def by_hand(moe: MoE, x_XD) -> np.ndarray:
    """One token at a time, in float64; gates are the softmax of the k largest logits."""
    router, gate, up, down = (
        np.asarray(p[...], np.float64) for p in (moe.router, moe.gate, moe.up, moe.down)
    )
    y_XD = np.zeros(x_XD.shape)
    for x_D, y_D in zip(np.asarray(x_XD, np.float64), y_XD):
        z_E = x_D @ router
        best = np.argsort(-z_E, kind="stable")[: moe.k]
        gates = np.exp(z_E[best] - z_E[best].max())
        if moe.order == "softmax_topk_raw":
            gates /= np.exp(z_E - z_E[best].max()).sum()
        else:
            gates /= gates.sum()
        for e, g in zip(best, gates):
            a = x_D @ gate[e]
            y_D += g * ((a / (1 + np.exp(-a)) * (x_D @ up[e])) @ down[e])
    return y_XD


@pytest.mark.parametrize("order", ["softmax_topk", "topk_softmax", "softmax_topk_raw"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_mixture_is_the_gated_sum_of_its_experts(order, k):
    moe = layer(router_order=order, experts_per_token=k)
    y_BTD, _ = call(moe, inputs())
    np.testing.assert_allclose(y_BTD[0], by_hand(moe, inputs()[0]), atol=1e-5)


def test_enough_capacity_is_dropless():
    capped = layer(capacity_factor=5 / 2)
    route = capped.route(inputs()[0])
    np.testing.assert_allclose(
        capped.with_capacity(inputs()[0], route), capped.dropless(inputs()[0], route), atol=1e-5
    )


def test_beyond_capacity_the_latest_tokens_lose_that_expert():
    """All tokens want experts 0 and 1; each has ceil(1.0 * 2 * 37 / 5) = 15 slots."""
    moe = layer(capacity_factor=1.0)
    route = call(moe, inputs()[0], path="route")
    route = route._replace(expert_Xk=jnp.tile(jnp.asarray([0, 1]), (X, 1)))
    got, want = (call(moe, inputs()[0], route, path=path) for path in ("with_capacity", "dropless"))
    np.testing.assert_allclose(got[:15], want[:15], atol=1e-5)
    np.testing.assert_array_equal(got[15:], np.zeros_like(got[15:]))


def test_gates_sum_to_one():
    np.testing.assert_allclose(
        call(layer(), inputs()[0], path="route").gate_Xk.sum(-1), np.ones(X), atol=1e-6
    )


def test_permuting_tokens_permutes_outputs():
    order = np.random.default_rng(0).permutation(X)
    y, moved = call(layer(), inputs())[0], call(layer(), inputs()[:, order])[0]
    np.testing.assert_allclose(moved, y[:, order], atol=1e-6)


def test_gradients_of_the_dispatch_paths_agree():
    moe = layer(capacity_factor=5 / 2)
    graphdef, params = nnx.split(moe)

    @functools.partial(jax.jit, static_argnums=1)
    def loss(params, path):
        m = nnx.merge(graphdef, params)
        y = getattr(m, path)(inputs()[0], m.route(inputs()[0]))
        return jnp.mean(jnp.sin(y))

    one, other = (jax.grad(loss)(params, path) for path in ("dropless", "with_capacity"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(a).max() > 1e-5


def test_a_uniform_router_has_balance_one_and_a_collapsed_one_has_experts_over_k():
    route = call(layer(), inputs()[0], path="route")
    even = jnp.stack([jnp.arange(X * 2) % 5]).reshape(X, 2)
    flat_XE = jnp.full((X, 5), 0.2)
    uniform = load(
        route._replace(expert_Xk=even[:35], p_XE=flat_XE[:35], logits_XE=flat_XE[:35]), jnp.ones(35, bool)
    )
    np.testing.assert_allclose(uniform.balance, 1, rtol=1e-6)
    np.testing.assert_allclose(uniform.share_E, np.full(5, 0.2), rtol=1e-6)
    sharp_XE = jnp.zeros((X, 5)).at[:, 0].set(1)
    collapsed = load(route._replace(expert_Xk=jnp.zeros((X, 1), int), p_XE=sharp_XE), jnp.ones(X, bool))
    np.testing.assert_allclose(collapsed.balance, 5, rtol=1e-6)


def test_padding_does_not_count_in_the_losses():
    moe, x = layer(), inputs()
    real = jnp.arange(X)[None] < 20
    for padded, alone in zip(call(moe, x, real)[1], call(moe, x[:, :20])[1]):
        np.testing.assert_allclose(padded, alone, rtol=1e-5)


def test_the_balance_loss_pulls_towards_balance():
    """One gradient step on the router alone lowers it."""
    moe = layer()
    graphdef, params = nnx.split(moe)

    @jax.jit
    def balance(router):
        return nnx.merge(graphdef, {**params, "router": params["router"].replace(router)})(inputs())[
            1
        ].balance

    start = params["router"][...]
    assert balance(start - 0.01 * jax.grad(balance)(start)) < balance(start)


def test_a_mixture_model_reports_its_load_and_decodes_like_any_other():
    graphdef, params = nnx.split(model(SPARSE))
    out = jax.jit(lambda params: nnx.merge(graphdef, params).forward(tokens()))(params)
    assert out.aux["expert_load_LE"].shape == (2, 5)
    np.testing.assert_allclose(out.aux["expert_load_LE"].sum(-1), np.ones(2), rtol=1e-6)
    assert 0.9 < float(out.aux["load_balance"]) < 5


def test_named_layers_stay_dense():
    config = dataclasses.replace(SPARSE, dense_layers=(0,), d_ff_dense=48)
    blocks = nnx.split(model(config))[1]["blocks"]
    assert blocks[0]["ffn"]["up"]["kernel"][...].shape == (32, 48)
    assert blocks[1]["ffn"]["up"][...].shape == (5, 32, 24)
    assert np.isfinite(logits(config, tokens())).all()
