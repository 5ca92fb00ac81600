"""Least-squares fits of one block's projections to what another model computes. Every fit changes a kernel
as little as its data allow: ridge regression of what is missing, towards no change.

Axes: R rows, T tokens, N = R T tokens of all rows, D model width, K key/value heads, G query heads per
key/value head, H head size, S keys, I and O inputs and outputs of a projection.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.layers import FeedForward, Linear
from mixattn.model import Block
from mixattn.rope import RopeTable, apply_rope
from mixattn.spec import Layer, ModelConfig

_MASKED = -1e30
# Added to a query's curvature, as a part of its mean: a softmax on few keys determines few directions.
_QUERY_DAMPING = 0.3


class Attended(NamedTuple):
    """What an attention layer reads: its owner's keys (not rotated) and values, and the mask."""

    keys_NF: jax.Array
    values_NF: jax.Array
    mask_TS: jax.Array


def ridge(x_NI: jax.Array, missing_NO: jax.Array, weight_N: jax.Array, strength: float) -> jax.Array:
    """change_IO that minimizes sum_N w^2 |x change - missing|^2 + s |change|^2.

    s is `strength` times the mean diagonal entry of the weighted x^T x, so that it has no unit.
    """
    x_NI, missing_NO = x_NI * weight_N[:, None], missing_NO * weight_N[:, None]
    gram_II = x_NI.T @ x_NI
    damping = strength * jnp.trace(gram_II) / len(gram_II)
    return jax.scipy.linalg.solve(
        gram_II + damping * jnp.eye(len(gram_II)), x_NI.T @ missing_NO, assume_a="pos"
    )


@jax.jit
def project_keys_values(block: Block, x_RTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """keys_NF, not rotated, and values_NF of an owner."""
    x_ND = _attention_inputs(block, x_RTD)
    k, v = _keys_values_kernels(block)
    return x_ND @ k, x_ND @ v


@jax.jit
def fit_keys_values(
    block: Block, x_RTD: jax.Array, keys_NF: jax.Array, values_NF: jax.Array, strength: float
) -> tuple[jax.Array, jax.Array]:
    """Kernels of k and v that give these keys (not rotated) and values on the block's own inputs."""
    x_ND = _attention_inputs(block, x_RTD)
    old = jnp.concatenate(_keys_values_kernels(block), axis=1)
    wanted = jnp.concatenate([keys_NF, values_NF], axis=1)
    k, v = jnp.split(old + ridge(x_ND, wanted - x_ND @ old, jnp.ones(len(x_ND)), strength), 2, axis=1)
    return k, v


@functools.partial(jax.jit, static_argnames="config")
def wanted_queries(
    config: ModelConfig,
    block: Block,
    original: Block,
    x_RTD: jax.Array,
    original_RTD: jax.Array,
    read: Attended,
    rope: RopeTable,
) -> jax.Array:
    """queries_NO, not rotated, whose scores on the student's keys are nearest the original's.

    Per token and head: least squares of the scores up to a constant, weighted by the original's attention (to
    second order the divergence of the two distributions), damped towards the student's present query.
    """
    H, scale = config.head_dim, config.head_dim**-0.5
    heads = functools.partial(_rotated_heads, config, x_RTD.shape[:2], rope)
    normed_ND = _attention_inputs(original, original_RTD)
    q_RTKGH = heads(normed_ND @ kernel_of(original.attention.q)[...])
    k_RSKH = heads(normed_ND @ _keys_values_kernels(original)[0])[:, :, :, 0]
    scores = jnp.where(read.mask_TS, _scores(q_RTKGH, k_RSKH) * scale, _MASKED)
    p = jax.nn.softmax(scores, axis=-1)
    scores = jnp.where(read.mask_TS, scores, 0)
    keys = heads(read.keys_NF)[:, :, :, 0]
    mean_key = jnp.einsum("rkgts,rskh->rkgth", p, keys)
    mean_score = jnp.sum(p * scores, axis=-1)[..., None]
    curvature = jnp.einsum("rkgts,rskh,rski->rkgthi", p, keys, keys)
    curvature -= mean_key[..., :, None] * mean_key[..., None, :]
    pull = jnp.einsum("rkgts,rskh->rkgth", p * scores, keys) - mean_key * mean_score
    present = heads(_attention_inputs(block, x_RTD) @ kernel_of(block.attention.q)[...])
    present = jnp.moveaxis(present, 1, 3) * scale
    damping = _QUERY_DAMPING * jnp.trace(curvature, axis1=-2, axis2=-1)[..., None] / H + 1e-4
    system = curvature + damping[..., None] * jnp.broadcast_to(jnp.eye(H), curvature.shape)
    query = jnp.linalg.solve(system, (pull + damping * present)[..., None])[..., 0] / scale
    return _unrotated(config, jnp.moveaxis(query, 3, 1), rope)


@jax.jit
def fit_queries(block: Block, x_RTD: jax.Array, queries_NO: jax.Array, strength: float) -> jax.Array:
    """Kernel of q that gives these queries."""
    x_ND, old = _attention_inputs(block, x_RTD), kernel_of(block.attention.q)[...]
    return old + ridge(x_ND, queries_NO - x_ND @ old, jnp.ones(len(x_ND)), strength)


@functools.partial(jax.jit, static_argnames="config")
def fit_output(
    config: ModelConfig,
    block: Block,
    x_RTD: jax.Array,
    target_RTD: jax.Array,
    read: Attended,
    rope: RopeTable,
    strength: float,
) -> tuple[jax.Array, jax.Array]:
    """Kernel of o for which the stream after attention is nearest the target, and that stream [R, T, D]."""
    heads = functools.partial(_rotated_heads, config, x_RTD.shape[:2], rope)
    q_RTKGH = heads(_attention_inputs(block, x_RTD) @ kernel_of(block.attention.q)[...])
    scores = _scores(q_RTKGH, heads(read.keys_NF)[:, :, :, 0]) * config.head_dim**-0.5
    p = jax.nn.softmax(jnp.where(read.mask_TS, scores, _MASKED), axis=-1)
    values = read.values_NF.reshape(*x_RTD.shape[:2], -1, config.head_dim)
    out_NO = jnp.einsum("rkgts,rskh->rtkgh", p, values).reshape(len(read.keys_NF), -1)
    return _towards(out_NO, kernel_of(block.attention.o)[...], x_RTD, target_RTD, strength)


@jax.jit
def fit_down(
    block: Block, x_RTD: jax.Array, target_RTD: jax.Array, strength: float
) -> tuple[jax.Array, jax.Array]:
    """Kernel of the feed-forward's last projection, and the stream after the block, as `fit_output`."""
    assert block.ffn_norm is not None
    assert isinstance(block.ffn, FeedForward)
    x_ND, ffn = _flat(block.ffn_norm(x_RTD)), block.ffn
    hidden_NF = jax.nn.silu(x_ND @ kernel_of(ffn.gate)[...]) * (x_ND @ kernel_of(ffn.up)[...])
    return _towards(hidden_NF, kernel_of(ffn.down)[...], x_RTD, target_RTD, strength)


def visible(layer: Layer, T: int) -> jax.Array:
    """mask_TS, bool: the keys that each query of a complete sequence sees."""
    behind_TS = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    if layer.window is None:
        return behind_TS >= 0
    near_TS = (behind_TS < layer.window) | (jnp.arange(T)[None] < layer.sinks)
    return (behind_TS >= 0) & near_TS


def relative_error(x_RTD: jax.Array, target_RTD: jax.Array) -> jax.Array:
    """Median over the tokens of |x - target|^2 / |target|^2."""
    error = jnp.sum((x_RTD - target_RTD) ** 2, axis=-1) / jnp.sum(target_RTD**2, axis=-1)
    return jnp.median(error)


def _towards(
    features_NI: jax.Array, old_ID: jax.Array, x_RTD: jax.Array, target_RTD: jax.Array, strength: float
) -> tuple[jax.Array, jax.Array]:
    """The projection of the features, and the stream with it added, that is nearest the target.

    Errors count relative to the target, so that the few tokens with huge activations do not decide alone; and
    a token whose stream is already far from its target counts less still.
    """
    missing_ND = _flat(target_RTD - x_RTD)
    size_N = jnp.linalg.norm(_flat(target_RTD), axis=1) + jnp.linalg.norm(missing_ND, axis=1)
    new_ID = old_ID + ridge(features_NI, missing_ND - features_NI @ old_ID, 1 / size_N, strength)
    return new_ID, x_RTD + (features_NI @ new_ID).reshape(x_RTD.shape)


def _attention_inputs(block: Block, x_RTD: jax.Array) -> jax.Array:
    """x_ND after the norm; `recover` refuses models without it."""
    assert block.attention_norm is not None
    return _flat(block.attention_norm(x_RTD))


def kernel_of(projection: object) -> nnx.Param:
    """The kernel of a projection that is not quantised (see `recover`)."""
    assert isinstance(projection, Linear)
    return projection.kernel


def _keys_values_kernels(block: Block) -> tuple[jax.Array, jax.Array]:
    """Kernels of k and v of an owner."""
    return kernel_of(block.attention.k)[...], kernel_of(block.attention.v)[...]


def _rotated_heads(
    config: ModelConfig, shape: tuple[int, ...], rope: RopeTable, flat_NO: jax.Array
) -> jax.Array:
    """[R, T, K, G, H] of a projection's output; G is 1 for keys."""
    heads = apply_rope(flat_NO.reshape(*shape, -1, config.head_dim), rope)
    return heads.reshape(*shape, config.n_kv_heads, -1, config.head_dim)


def _unrotated(config: ModelConfig, q_RTKGH: jax.Array, rope: RopeTable) -> jax.Array:
    R, T = q_RTKGH.shape[:2]
    cos, sin = rope
    return apply_rope(q_RTKGH.reshape(R, T, -1, config.head_dim), (cos, -sin)).reshape(R * T, -1)


def _scores(q_RTKGH: jax.Array, k_RSKH: jax.Array) -> jax.Array:
    return jnp.einsum("rtkgh,rskh->rkgts", q_RTKGH, k_RSKH)


def _flat(x_RTD: jax.Array) -> jax.Array:
    return x_RTD.reshape(-1, x_RTD.shape[-1])
