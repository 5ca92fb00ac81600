"""Column sums by their definition: all weights, then their sum."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention import operands, xla_dense
from pallas_kernels.attention.operands import TokenPositions
from pallas_kernels.heavy_hitter import ColumnSumsCall
from pallas_kernels.typing import accumulator_dtype


def unsupported(call: ColumnSumsCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return None


def column_sums(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    lse_BTN: jax.Array,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
    positions: TokenPositions,
) -> jax.Array:
    """Returns sums_BKS."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    acc_dtype, everything = accumulator_dtype(q_BTNH.dtype), slice(None)
    static = operands.StaticOptions(window, True, operands.ScoreTransform(scale, softcap))
    mask_BTS = xla_dense.mask(positions, static, T, S, everything, everything)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H).astype(acc_dtype)
    score_BKGTS = (
        jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH.astype(acc_dtype), precision="highest") * scale
    )
    if softcap is not None:
        score_BKGTS = softcap * jnp.tanh(score_BKGTS / softcap)
    lse_BKGT = jnp.moveaxis(lse_BTN.reshape(B, T, K, N // K), 1, 3)
    score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS - lse_BKGT[..., None], -jnp.inf)
    return jnp.sum(jnp.exp(score_BKGTS), axis=(2, 3))
