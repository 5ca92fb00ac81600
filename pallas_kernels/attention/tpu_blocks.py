"""Parts that the TPU kernels over (batch, head, block, block) share: block sizes, block ranges and masks.

Rows of a tile are queries x G, the query heads of one key/value head in consecutive rows; keys are its lanes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.attention import xla_streamed
from pallas_kernels.attention.operands import StaticOptions, TokenPositions
from pallas_kernels.attention.xla_streamed import BlockGrid
from pallas_kernels.masks import positions_seen, visible
from pallas_kernels.typing import Ref, Shaped

# Rows (queries x G) and keys of a tile. Keys are lanes of the scores: a multiple of 128 on the device.
ROWS, KEYS = 512, 512
LANES = 128


def make_grid(static: StaticOptions, positions: TokenPositions, T: int, S: int, G: int) -> BlockGrid:
    """Blocks whose rows and lanes are whole tiles of the device."""
    bq = min(max(16, ROWS // G), -(-T // 16) * 16)
    return xla_streamed.BlockGrid(positions, static, T, S, bq=bq, bk=min(KEYS, -(-S // LANES) * LANES))


def block_index(i: jax.Array, j: jax.Array, first_n: Ref, end_n: Ref) -> jax.Array:
    """The j-th block of the range of i. Beyond the end it repeats the last one, which causes no copy."""
    return jnp.minimum(first_n[i] + j, jnp.maximum(end_n[i] - 1, first_n[i]))


def max_blocks_in_view(
    static: StaticOptions, positions: TokenPositions, held: int, passing: int, n_blocks: int
) -> int:
    """Maximum number of blocks of `passing` positions that a block of `held` positions meets.

    Without a window, or with explicit positions, all `n_blocks` of them.
    """
    if static.window is None or positions.q_pos_BT is not None:
        return n_blocks
    touched = xla_streamed.max_blocks_touched(positions_seen(held, static.window), passing)
    return min(n_blocks, touched)


def token_meta(grid: BlockGrid, B: int, G: int) -> tuple[jax.Array, jax.Array]:
    """Position and segment of every row, [B, rows, 2], and of every key, [B, 2, keys], int32."""

    def flatten(x_nBt: jax.Array) -> jax.Array:
        n, b, t = x_nBt.shape
        return jnp.broadcast_to(jnp.moveaxis(x_nBt, 0, 1).reshape(b, n * t), (B, n * t)).astype(jnp.int32)

    rows = [jnp.repeat(flatten(x), G, axis=1) for x in (grid.q_pos_nB, grid.q_segment_nB)]
    keys = [flatten(x) for x in (grid.k_pos_mB, grid.k_segment_mB)]
    return jnp.stack(rows, axis=-1), jnp.stack(keys, axis=1)


def mask(row_meta_R2: jax.Array, key_meta_2S: jax.Array, static: StaticOptions) -> jax.Array:
    """The mask of a tile: bool [R, S], from the metadata of its rows and keys."""
    position_1S = key_meta_2S[0:1]
    seen_RS = visible(row_meta_R2[:, 0:1] - position_1S, static.window)
    return seen_RS & (position_1S >= 0) & (row_meta_R2[:, 1:2] == key_meta_2S[1:2])


def matmul_transposed(a_RH: jax.Array, b_SH: jax.Array) -> jax.Array:
    """a · bᵀ, float32."""
    return jax.lax.dot_general(
        a_RH,
        b_SH,
        (((1,), (1,)), ((), ())),
        precision=matmul_precision(a_RH),
        preferred_element_type=jnp.float32,
    )


def matmul_precision(x: jax.Array) -> jax.lax.Precision | None:
    """The precision that multiplies float32 operands as float32 instead of rounding them to bfloat16."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def fold_rows(grid: BlockGrid, x_BKTGetc: jax.Array) -> jax.Array:
    """[B, K, T, G, ...] to [B, K, n bq G, ...], padded."""
    B, K, _, G, *etc = x_BKTGetc.shape
    x = jnp.pad(
        x_BKTGetc, ((0, 0), (0, 0), (0, grid.n * grid.bq - grid.T), *((0, 0) for _ in range(1 + len(etc))))
    )
    return x.reshape(B, K, grid.n * grid.bq * G, *etc)


def unfold_rows(grid: BlockGrid, x_BKRetc: jax.Array) -> jax.Array:
    """The inverse of `fold_rows`."""
    B, K, R, *etc = x_BKRetc.shape
    return x_BKRetc.reshape(B, K, grid.n * grid.bq, R // (grid.n * grid.bq), *etc)[:, :, : grid.T]


def cost_estimate(flops: int, pairs: int, H: int, *arrays: Shaped) -> Any:
    """The cost of a kernel for XLA's scheduler: `flops` x H FLOPs per pair, each array moved once."""
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=flops * pairs * H, transcendentals=pairs, bytes_accessed=moved)
