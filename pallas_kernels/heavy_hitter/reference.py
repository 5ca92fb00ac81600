"""Column sums by their definition: every weight, then a sum."""

import jax.numpy as jnp

from pallas_kernels.attention import xla, xla_dense, xla_tiles
from pallas_kernels.precision import accumulator


def refuses(ask) -> str | None:
    return None


def column_sums(q_BTNH, k_BSKH, lse_BTN, *, window, scale, softcap, places):
    """Returns sums_BKS."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    wide, everything = accumulator(q_BTNH.dtype), slice(None)
    static = xla.Static(window, True, xla_tiles.Score(scale, softcap))
    keep_BTS = xla_dense.keep(xla.Places(*places), static, T, S, everything, everything)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H).astype(wide)
    score_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH.astype(wide), precision="highest") * scale
    if softcap is not None:
        score_BKGTS = softcap * jnp.tanh(score_BKGTS / softcap)
    lse_BKGT = jnp.moveaxis(lse_BTN.reshape(B, T, K, N // K), 1, 3)
    score_BKGTS = jnp.where(keep_BTS[:, None, None], score_BKGTS - lse_BKGT[..., None], -jnp.inf)
    return jnp.sum(jnp.exp(score_BKGTS), axis=(2, 3))
