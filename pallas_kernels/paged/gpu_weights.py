"""Softmax weights of all positions on Hopper, from the log-sum-exp that `gpu` returns, for the scores of H2O.

One warpgroup computes 64 positions of a row against a block of its queries: pages by TMA, the product by
wgmma. Positions that no query of the block sees cost no copy; their weights are 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, TILED, load_vector, matmul_transposed
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.masks import oldest, visible
from pallas_kernels.paged import Pool
from pallas_kernels.typing import Ref


def weights(
    q_BKnRH: jax.Array,
    lse_BKnR: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    bq: int,
    G: int,
    window: int | None,
    score: ScoreTransform,
) -> jax.Array:
    """Returns weights_BKnRS, float32: S = P · page_size, and more where that is no multiple of 64.

    `q_BKnRH`, `lse_BKnR`: blocks of `bq` queries x G heads of one key/value head, padded to 64 rows.
    """
    (B, K, n, _, H), P, t = q_BKnRH.shape, table_BP.shape[1], pool.page_size
    groups = -(-P * t // KEYS)
    dtype = q_BKnRH.dtype
    return plgpu.kernel(
        functools.partial(_kernel, bq=bq, G=G, t=t, window=window, score=score),
        out_type=jax.ShapeDtypeStruct((B, K, n, ROWS, groups * KEYS), jnp.float32),
        scratch_types={
            "q_RH": plgpu.SMEM((ROWS, H), dtype, transforms=TILED),
            "k_SH": plgpu.SMEM((KEYS, H), dtype, transforms=TILED),
            "lse_R": plgpu.SMEM((ROWS,), jnp.float32),
            "weight_RS": plgpu.SMEM((ROWS, KEYS), jnp.float32),
            "ready": plgpu.Barrier(num_arrivals=2 + KEYS // t),
        },
        grid=(groups, n, K, B),
        grid_names=("group", "block", "head", "row"),
    )(table_BP, start_B, count_B, q_BKnRH, xla_tiles.finite(lse_BKnR), pool.keys)


def _kernel(
    table: Ref,
    start: Ref,
    count: Ref,
    q_hbm: Ref,
    lse_hbm: Ref,
    keys: Ref,
    weights_hbm: Ref,
    *,
    bq: int,
    G: int,
    t: int,
    window: int | None,
    score: ScoreTransform,
    q_RH: Ref,
    k_SH: Ref,
    lse_R: Ref,
    weight_RS: Ref,
    ready: Ref,
) -> None:
    g, i, head, b = (lax.axis_index(name) for name in ("group", "block", "head", "row"))
    n_queries = jnp.minimum(count[b] - i * bq, bq)
    position = start[b] + i * bq
    first = jnp.maximum(oldest(position, window), 0) // t
    end = jnp.where(n_queries > 0, (position + n_queries - 1) // t + 1, first)
    group = KEYS // t
    seen = (g * group < end) & ((g + 1) * group > first)

    @pl.when(seen)
    def _() -> None:
        plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i], q_RH, ready)
        plgpu.copy_gmem_to_smem(lse_hbm.at[b, head, i], lse_R, ready)
        for x in range(group):  # a visible page replaces a page out of view, whose positions are masked
            page = table[b, jnp.clip(g * group + x, first, end - 1)]
            plgpu.copy_gmem_to_smem(keys.at[page, head], k_SH.at[pl.ds(x * t, t)], ready)
        plgpu.barrier_wait(ready)
        row_RS, key_RS = (
            plgpu.broadcasted_iota(jnp.int32, (ROWS, KEYS), axis, layout=plgpu.Layout.WGMMA)
            for axis in (0, 1)
        )
        query_RS = row_RS // G if G > 1 else row_RS
        mask_RS = visible(position + query_RS - (key_RS + g * KEYS), window) & (query_RS < n_queries)
        lse_RS = lax.broadcast_in_dim(load_vector(lse_R, 0), (ROWS, KEYS), [0])
        weight_RS[...] = xla_tiles.weights_from_lse(matmul_transposed(q_RH, k_SH), mask_RS, lse_RS, score)

    @pl.when(~seen)
    def _() -> None:
        weight_RS[...] = plgpu.layout_cast(jnp.zeros((ROWS, KEYS), jnp.float32), plgpu.Layout.WGMMA)

    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(weight_RS, weights_hbm.at[b, head, i, :, pl.ds(g * KEYS, KEYS)])
    plgpu.wait_smem_to_gmem(0)
