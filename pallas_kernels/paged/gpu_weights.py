"""The weight of every position on Hopper, from the log-sum-exp that `gpu` returns; H2O scores sum them up.

One warpgroup takes 64 positions of a row against a block of its queries: the pages by TMA, the product by
wgmma. Positions that no query of the block sees cost no copy; their weights are 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, TILED, product, vector
from pallas_kernels.masks import oldest, visible


def weights(q_BKnRH, lse_BKnR, pool, table_BP, start_B, count_B, *, bq, G, window, score):
    """Returns weights_BKnRS, float32: S = P · page_size, and more where that is no multiple of 64.

    `q_BKnRH`, `lse_BKnR`: blocks of `bq` queries of all heads of a key/value head, padded to 64 rows.
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
            "here": plgpu.Barrier(num_arrivals=2 + KEYS // t),
        },
        grid=(groups, n, K, B),
        grid_names=("group", "block", "head", "row"),
    )(table_BP, start_B, count_B, q_BKnRH, xla_tiles.finite(lse_BKnR), pool.keys)


def _kernel(
    table, start, count, q_hbm, lse_hbm, keys, weights_hbm,
    *, bq, G, t, window, score, q_RH, k_SH, lse_R, weight_RS, here,
):  # fmt: skip
    g, i, head, b = (lax.axis_index(name) for name in ("group", "block", "head", "row"))
    asked = jnp.minimum(count[b] - i * bq, bq)  # this block's queries
    position = start[b] + i * bq
    first = jnp.maximum(oldest(position, window), 0) // t
    end = jnp.where(asked > 0, (position + asked - 1) // t + 1, first)
    group = KEYS // t
    seen = (g * group < end) & ((g + 1) * group > first)

    @pl.when(seen)
    def _():
        plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i], q_RH, here)
        plgpu.copy_gmem_to_smem(lse_hbm.at[b, head, i], lse_R, here)
        for x in range(group):  # a page out of view has a neighbour's keys in its place, and is masked
            page = table[b, jnp.clip(g * group + x, first, end - 1)]
            plgpu.copy_gmem_to_smem(keys.at[page, head], k_SH.at[pl.ds(x * t, t)], here)
        plgpu.barrier_wait(here)
        row_RS, key_RS = (
            plgpu.broadcasted_iota(jnp.int32, (ROWS, KEYS), axis, layout=plgpu.Layout.WGMMA)
            for axis in (0, 1)
        )
        query_RS = row_RS // G if G > 1 else row_RS
        keep_RS = visible(position + query_RS - (key_RS + g * KEYS), window) & (query_RS < asked)
        lse_RS = lax.broadcast_in_dim(vector(lse_R, 0), (ROWS, KEYS), [0])
        weight_RS[...] = xla_tiles.weights_given(product(q_RH, k_SH), keep_RS, lse_RS, score)

    @pl.when(~seen)
    def _():
        weight_RS[...] = plgpu.layout_cast(jnp.zeros((ROWS, KEYS), jnp.float32), plgpu.Layout.WGMMA)

    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(weight_RS, weights_hbm.at[b, head, i, :, pl.ds(g * KEYS, KEYS)])
    plgpu.wait_smem_to_gmem(0)
