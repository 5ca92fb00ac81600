"""Column sums in plain XLA: the streamed plan of attention, with sums over rows instead of outputs."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import operands, xla_streamed, xla_tiles
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
    (B, T), (_, S, K, _) = q_BTNH.shape[:2], k_BSKH.shape
    acc_dtype, score = accumulator_dtype(q_BTNH.dtype), operands.ScoreTransform(float(scale), softcap)
    grid = xla_streamed.BlockGrid(positions, operands.StaticOptions(window, True, score), T, S)
    q_BKTGH, lse_BKTG = operands.by_group(q_BTNH, K), operands.by_group(lse_BTN, K)
    k_BKSH = grid.pad_keys(operands.by_head(k_BSKH), 2)

    def query_block(sums_BKS: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        i, q, lse = x

        def key_block(j: jax.Array, sums_BKS: jax.Array) -> jax.Array:
            more_BKS = xla_tiles.column_sums(
                q, grid.key_block(k_BKSH, j), grid.mask(i, j), lse, score, acc_dtype
            )
            return grid.add_block(sums_BKS, more_BKS, j)

        return lax.fori_loop(grid.first_n[i], grid.end_n[i], key_block, sums_BKS), None

    start = jnp.zeros((B, K, grid.m * grid.bk), acc_dtype)
    blocks = jnp.arange(grid.n), grid.query_blocks(q_BKTGH), grid.query_blocks(lse_BKTG)
    sums_BKS: jax.Array = lax.scan(query_block, start, blocks)[0]
    return sums_BKS[:, :, :S]
