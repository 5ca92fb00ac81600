"""What the TPU kernels over (batch, head, block, block) share: block sizes, ranges, and who sees whom.

Rows of a tile are queries x G, the query heads of one key/value head beside each other; keys are its lanes.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.attention import xla_streamed
from pallas_kernels.masks import visible

# Rows (queries x G) and keys of a tile. Keys are lanes of the scores: a multiple of 128 on the device.
ROWS, KEYS = 512, 512
LANES = 128


def grid_of(static, places, T, S, G):
    """Blocks whose rows and lanes are whole tiles of the device."""
    bq = min(max(16, ROWS // G), -(-T // 16) * 16)
    return xla_streamed.BlockGrid(places, static, T, S, bq=bq, bk=min(KEYS, -(-S // LANES) * LANES))


def within(i, j, first_n, end_n):
    """The j-th block of the range of i; the last one again beyond its end, so that nothing is copied."""
    return jnp.minimum(first_n[i] + j, jnp.maximum(end_n[i] - 1, first_n[i]))


def reach(static, places, mine, other, most):
    """The most blocks of `other` positions that the windows of `mine` consecutive ones can touch."""
    if static.window is None or places.q_pos_BT is not None:
        return most
    return min(most, (static.window + mine + other - 3) // other + 1)


def facts(grid, B, G):
    """Position and segment of every row, [B, rows, 2], and of every key, [B, 2, keys], int32."""

    def line(x_nB):
        n, b, t = x_nB.shape
        return jnp.broadcast_to(jnp.moveaxis(x_nB, 0, 1).reshape(b, n * t), (B, n * t)).astype(jnp.int32)

    rows = [jnp.repeat(line(x), G, axis=1) for x in (grid.q_pos_nB, grid.q_segment_nB)]
    keys = [line(x) for x in (grid.k_pos_mB, grid.k_segment_mB)]
    return jnp.stack(rows, axis=-1), jnp.stack(keys, axis=1)


def keep(at_R2, at_2S, static):
    """Which keys the rows of a tile see: bool [R, S]."""
    position_1S = at_2S[0:1]
    seen_RS = visible(at_R2[:, 0:1] - position_1S, static.window)
    return seen_RS & (position_1S >= 0) & (at_R2[:, 1:2] == at_2S[1:2])


def rows_by_keys(a_RH, b_SH):
    """a · b transposed, float32."""
    return jax.lax.dot_general(
        a_RH, b_SH, (((1,), (1,)), ((), ())), precision=exact(a_RH), preferred_element_type=jnp.float32
    )


def exact(x):
    """float32 operands are multiplied as float32, not rounded to bfloat16 on the way."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def fold_rows(grid, x_BKTGetc):
    """[B, K, T, G, ...] to [B, K, n bq G, ...], padded."""
    B, K, _, G, *etc = x_BKTGetc.shape
    x = jnp.pad(
        x_BKTGetc, ((0, 0), (0, 0), (0, grid.n * grid.bq - grid.T), *((0, 0) for _ in range(1 + len(etc))))
    )
    return x.reshape(B, K, grid.n * grid.bq * G, *etc)


def unfold_rows(grid, x_BKRetc):
    """The inverse of `fold_rows`."""
    B, K, R, *etc = x_BKRetc.shape
    return x_BKRetc.reshape(B, K, grid.n * grid.bq, R // (grid.n * grid.bq), *etc)[:, :, : grid.T]


def cost(products, pairs, H, *arrays):
    """What XLA should expect of a kernel: `products` x 2 H FLOPs a pair, each array moved once."""
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=products * pairs * H, transcendentals=pairs, bytes_accessed=moved)
