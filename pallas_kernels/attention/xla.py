"""Attention in plain XLA: the CPU's body and everybody's fallback.

Time and memory follow the pairs that are visible, by one of three plans, chosen from static facts:

  prefix    a few blocks of queries, each against the keys before it; one block if nothing is known of the
            positions. Best while the scores of a block stay in cache.
  banded    with a window: all blocks of queries at once, each against the few key blocks it reaches.
  streamed  long inputs: a loop over query blocks around a loop over just the key blocks they can see,
            joined by streaming softmax. Skips documents too.

The backward pass recomputes each tile's weights from the log-sum-exp, by the same plan.
"""

import functools
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention import xla_banded, xla_dense, xla_streamed
from pallas_kernels.attention.xla_tiles import Score
from pallas_kernels.precision import accumulator

# Above this many bytes of scores alive at once the streamed plan is faster (and leaner).
SCORE_BYTES = 1 << 20


class Static(NamedTuple):
    """What is known of a call before it runs."""

    window: int | None
    causal: bool
    score: Score


class Places(NamedTuple):
    """Where queries and keys are; None where the plain 0..S-1 or a single document is meant."""

    q_pos_BT: jax.Array | None
    k_pos_BS: jax.Array | None
    segment_q_BT: jax.Array | None
    segment_k_BS: jax.Array | None


def refuses(ask) -> str | None:
    return None


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    window,
    causal,
    scale,
    softcap,
    q_pos_BT,
    k_pos_BS,
    segment_q_BT,
    segment_k_BS,
):
    """Returns out_BTNH and lse_BTN."""
    if window is not None and q_pos_BT is None and window >= k_BSKH.shape[1]:
        window = None  # it reaches every key there is
    places = Places(q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    return _attention(Static(window, causal, Score(float(scale), softcap)), q_BTNH, k_BSKH, v_BSKH, places)


def plan(static: Static, places: Places, q_shape, k_shape) -> ModuleType:
    """The module that computes a call of these shapes."""
    (B, T, N, H), (_, S, K, _) = q_shape, k_shape
    plain = places.q_pos_BT is None and static.causal
    if plain and static.window is not None and T > 1:
        pairs, body = xla_banded.pairs(T, static.window), "banded"
    else:
        pairs, body = (xla_dense.pairs(T, S) if plain else T * S), "prefix"
    # Few queries, as in decoding, have no more scores than there are numbers in the keys anyway, and rows of
    # one streamed block have nothing to stream.
    small = 4 * B * N * pairs <= SCORE_BYTES or T * N <= K * H or max(T, S) <= xla_streamed.BLOCK
    return {"banded": xla_banded, "prefix": xla_dense}[body] if small else xla_streamed


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q_BTNH, k_BSKH, v_BSKH, places):
    return _forward(static, q_BTNH, k_BSKH, v_BSKH, places)[0]


def _forward(static, q_BTNH, k_BSKH, v_BSKH, places):
    body = plan(static, places, q_BTNH.shape, k_BSKH.shape)
    q_BKTGH, k_BKSH, v_BKSH = by_group(q_BTNH, k_BSKH.shape[2]), by_head(k_BSKH), by_head(v_BSKH)
    out_BKTGH, lse_BKTG = body.forward(q_BKTGH, k_BKSH, v_BKSH, places, static, accumulator(q_BTNH.dtype))
    out_BTNH = by_query(out_BKTGH).astype(q_BTNH.dtype)
    lse_BTN = by_query(lse_BKTG)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN)


def backward(static, saved, cotangents):
    q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN = saved
    dout_BTNH, dlse_BTN = cotangents
    K, wide = k_BSKH.shape[2], accumulator(q_BTNH.dtype)
    delta_BTN = jnp.sum(out_BTNH.astype(wide) * dout_BTNH.astype(wide), axis=-1) - dlse_BTN
    grouped = (by_group(x, K) for x in (dout_BTNH, lse_BTN, delta_BTN))
    body = plan(static, places, q_BTNH.shape, k_BSKH.shape)
    dq_BKTGH, dk_BKSH, dv_BKSH = body.backward(
        by_group(q_BTNH, K), by_head(k_BSKH), by_head(v_BSKH), places, static, wide, *grouped
    )
    gradients = by_query(dq_BKTGH), by_head(dk_BKSH), by_head(dv_BKSH)
    return *(x.astype(q_BTNH.dtype) for x in gradients), None


_attention.defvjp(_forward, backward)


def by_group(x, K):
    """[B, T, N, ...] to [B, K, T, G, ...]."""
    B, T, N = x.shape[:3]
    return jnp.moveaxis(x.reshape(B, T, K, N // K, *x.shape[3:]), 2, 1)


def by_query(x):
    """[B, K, T, G, ...] to [B, T, N, ...]."""
    B, K, T, G = x.shape[:4]
    return jnp.moveaxis(x, 1, 2).reshape(B, T, K * G, *x.shape[4:])


def by_head(x):
    """[B, S, K, H] to [B, K, S, H], and back."""
    return jnp.swapaxes(x, 1, 2)
