"""Column sums in plain XLA: the streamed plan of attention, with sums over rows in place of outputs."""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import xla, xla_streamed, xla_tiles
from pallas_kernels.precision import accumulator


def refuses(ask) -> str | None:
    return None


def column_sums(q_BTNH, k_BSKH, lse_BTN, *, window, scale, softcap, places):
    """Returns sums_BKS."""
    (B, T), (_, S, K, _) = q_BTNH.shape[:2], k_BSKH.shape
    wide, score = accumulator(q_BTNH.dtype), xla_tiles.Score(float(scale), softcap)
    grid = xla_streamed.BlockGrid(xla.Places(*places), xla.Static(window, True, score), T, S)
    q_BKTGH, lse_BKTG = xla.by_group(q_BTNH, K), xla.by_group(lse_BTN, K)
    k_BKSH = grid.pad_keys(xla.by_head(k_BSKH), 2)

    def rows(sums_BKS, x):
        i, q, lse = x

        def keys(j, sums_BKS):
            more_BKS = xla_tiles.columns(q, grid.key_block(k_BKSH, j), grid.keep(i, j), lse, score, wide)
            return grid.add_block(sums_BKS, more_BKS, j)

        return lax.fori_loop(grid.first_n[i], grid.end_n[i], keys, sums_BKS), None

    start = jnp.zeros((B, K, grid.m * grid.bk), wide)
    blocks = jnp.arange(grid.n), grid.query_blocks(q_BKTGH), grid.query_blocks(lse_BKTG)
    return lax.scan(rows, start, blocks)[0][:, :, :S]
