"""Attention by its definition: one dense softmax. Short and slow."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention import AttentionCall
from pallas_kernels.masks import visible
from pallas_kernels.typing import accumulator_dtype


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
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    acc_dtype = accumulator_dtype(q_BTNH.dtype)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H).astype(acc_dtype)
    score_BKGTS = (
        jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH.astype(acc_dtype), precision="highest") * scale
    )
    if softcap is not None:
        score_BKGTS = softcap * jnp.tanh(score_BKGTS / softcap)
    if q_pos_BT is None or k_pos_BS is None:
        k_pos_BS = jnp.broadcast_to(jnp.arange(S), (B, S))
        q_pos_BT = k_pos_BS[:, S - T :]
    age_BTS = q_pos_BT[:, :, None] - k_pos_BS[:, None, :]
    mask_BTS = (visible(age_BTS, window) if causal else True) & (k_pos_BS >= 0)[:, None, :]
    if segment_q_BT is not None and segment_k_BS is not None:
        mask_BTS &= segment_q_BT[:, :, None] == segment_k_BS[:, None, :]
    mask_BKGTS = mask_BTS[:, None, None]

    # The maximum of a row that sees nothing is -inf; 0 in its place keeps exp and its gradient finite.
    score_BKGTS = jnp.where(mask_BKGTS, score_BKGTS, -jnp.inf)
    top_BKGT1 = jnp.max(score_BKGTS, axis=-1, keepdims=True)
    top_BKGT1 = jnp.where(jnp.isfinite(top_BKGT1), top_BKGT1, 0)
    weight_BKGTS = jnp.exp(score_BKGTS - top_BKGT1)
    total_BKGT1 = jnp.sum(weight_BKGTS, axis=-1, keepdims=True)
    seen_BKGT1 = total_BKGT1 > 0
    total_BKGT1 = jnp.where(seen_BKGT1, total_BKGT1, 1)
    out_BTKGH = jnp.einsum(
        "BKGTS,BSKH->BTKGH", weight_BKGTS / total_BKGT1, v_BSKH.astype(acc_dtype), precision="highest"
    )
    lse_BKGT = jnp.where(seen_BKGT1, top_BKGT1 + jnp.log(total_BKGT1), -jnp.inf)[..., 0]
    lse_BTN = jnp.moveaxis(lse_BKGT, 3, 1).reshape(B, T, N)
    return out_BTKGH.reshape(B, T, N, -1).astype(q_BTNH.dtype), lse_BTN
