"""Attention in plain XLA: the backend of the CPU and the fallback of every platform.

Time and memory are proportional to the visible pairs. One of three plans is chosen from static properties:

  dense     a few blocks of queries, each against the keys before it; one block if positions are given. Best
            while the scores of a block stay in cache.
  banded    with a window: all blocks of queries at once, each against the few key blocks it reaches.
  streamed  long inputs: a loop over query blocks around a loop over the key blocks they can see, with
            streaming softmax. Skips other documents too.

The backward pass recomputes the weights of each tile from the log-sum-exp, by the same plan.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp

from pallas_kernels.attention import AttentionCall, xla_banded, xla_dense, xla_streamed
from pallas_kernels.attention.operands import (
    Residuals,
    ScoreTransform,
    StaticOptions,
    TokenPositions,
    by_group,
    by_head,
    by_query,
)
from pallas_kernels.typing import accumulator_dtype

# Above this many bytes of live scores the streamed plan is faster and uses less memory.
SCORE_BYTES = 1 << 20


def unsupported(call: AttentionCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return None


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int | None,
    causal: bool,
    scale: float,
    softcap: float | None,
    q_pos_BT: jax.Array | None,
    k_pos_BS: jax.Array | None,
    segment_q_BT: jax.Array | None,
    segment_k_BS: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and lse_BTN."""
    if window is not None and q_pos_BT is None and window >= k_BSKH.shape[1]:
        window = None  # it reaches every key
    positions = TokenPositions(q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    return _attention(
        StaticOptions(window, causal, ScoreTransform(float(scale), softcap)),
        q_BTNH,
        k_BSKH,
        v_BSKH,
        positions,
    )


def plan(
    static: StaticOptions,
    positions: TokenPositions,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
) -> ModuleType:
    """The module that computes a call with q of shape [B, T, N, H] and k of shape [B, S, K, H]."""
    (B, T, N, H), (_, S, K, _) = q_shape, k_shape
    plain = positions.q_pos_BT is None and static.causal
    module: ModuleType
    if plain and static.window is not None and T > 1:
        scores, module = xla_banded.scores_per_head(T, static.window), xla_banded
    else:
        scores, module = (xla_dense.scores_per_head(T, S) if plain else T * S), xla_dense
    # Few queries, as in decoding, have no more scores than the keys have numbers. Rows of one streamed block
    # leave nothing to stream.
    small = 4 * B * N * scores <= SCORE_BYTES or T * N <= K * H or max(T, S) <= xla_streamed.BLOCK
    return module if small else xla_streamed


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    static: StaticOptions,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions: TokenPositions,
) -> tuple[jax.Array, jax.Array]:
    return _forward(static, q_BTNH, k_BSKH, v_BSKH, positions)[0]


def _forward(
    static: StaticOptions,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions: TokenPositions,
) -> tuple[tuple[jax.Array, jax.Array], Residuals]:
    module = plan(static, positions, q_BTNH.shape, k_BSKH.shape)
    q_BKTGH, k_BKSH, v_BKSH = by_group(q_BTNH, k_BSKH.shape[2]), by_head(k_BSKH), by_head(v_BSKH)
    acc_dtype = accumulator_dtype(q_BTNH.dtype)
    out_BKTGH, lse_BKTG = module.forward(q_BKTGH, k_BKSH, v_BKSH, positions, static, acc_dtype)
    out_BTNH = by_query(out_BKTGH).astype(q_BTNH.dtype)
    lse_BTN = by_query(lse_BKTG)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, positions, out_BTNH, lse_BTN)


def _backward(
    static: StaticOptions, saved: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    q_BTNH, k_BSKH, v_BSKH, positions, out_BTNH, lse_BTN = saved
    dout_BTNH, dlse_BTN = cotangents
    K, acc_dtype = k_BSKH.shape[2], accumulator_dtype(q_BTNH.dtype)
    delta_BTN = jnp.sum(out_BTNH.astype(acc_dtype) * dout_BTNH.astype(acc_dtype), axis=-1) - dlse_BTN
    grouped = (by_group(x, K) for x in (dout_BTNH, lse_BTN, delta_BTN))
    module = plan(static, positions, q_BTNH.shape, k_BSKH.shape)
    dq_BKTGH, dk_BKSH, dv_BKSH = module.backward(
        by_group(q_BTNH, K), by_head(k_BSKH), by_head(v_BSKH), positions, static, acc_dtype, *grouped
    )
    gradients = by_query(dq_BKTGH), by_head(dk_BKSH), by_head(dv_BKSH)
    return *(x.astype(q_BTNH.dtype) for x in gradients), None


_attention.defvjp(_forward, _backward)
