"""Column sums on Hopper: a warpgroup a block of 64 keys, over the row blocks that see it.

Keys are the rows of the product, so that a sum over queries is a sum along a row, within a quarter of a warp.
No values are read, and nothing is written twice.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gpu_blocks, xla, xla_streamed, xla_tiles
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, STAGES, TILED, product, vector


def refuses(ask) -> str | None:
    return gpu_blocks.refuses_shape(ask.dtype, ask.shape_BTNH[3], ask.shape_BTNH[2] // ask.shape_BSKH[2])


def column_sums(q_BTNH, k_BSKH, lse_BTN, *, window, scale, softcap, places):
    """Returns sums_BKS."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    dtype = q_BTNH.dtype
    static = xla.Static(window, True, xla_tiles.Score(float(scale), softcap))
    folded = gpu_blocks.Folded(static, xla.Places(*places), B, T, S, N // K)
    keys = folded.keys(k_BSKH)
    sums_BKS = plgpu.kernel(
        functools.partial(_kernel, static=static),
        out_type=jax.ShapeDtypeStruct(keys.shape[:3], jnp.float32),
        scratch_types={
            "k_SH": plgpu.SMEM((KEYS, H), dtype, transforms=TILED),
            "at_2S": plgpu.SMEM((2, KEYS), jnp.int32),
            "q_xRH": plgpu.SMEM((STAGES, ROWS, H), dtype, transforms=TILED),
            "at_x2R": plgpu.SMEM((STAGES, 2, ROWS), jnp.int32),
            "lse_xR": plgpu.SMEM((STAGES, ROWS), jnp.float32),
            "sums_S": plgpu.SMEM((KEYS,), jnp.float32),
            "keys_here": plgpu.Barrier(num_arrivals=2),
            "rows_here": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
        },
        grid=(folded.grid.m, K, B),
        grid_names=("block", "head", "row"),
    )(
        *xla_streamed.ranges(folded.grid.may_nm.T),
        folded.row_facts_Bn2R,
        folded.key_facts_Bm2S,
        folded.rows(q_BTNH, K),
        folded.rows(xla_tiles.finite(lse_BTN), K),
        keys,
    )
    return sums_BKS[:, :, :S]


def _kernel(
    first, end, row_facts, key_facts, q_hbm, lse_hbm, keys, sums_hbm,
    *, static, k_SH, at_2S, q_xRH, at_x2R, lse_xR, sums_S, keys_here, rows_here,
):  # fmt: skip
    j, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))
    block = pl.ds(j * KEYS, KEYS)

    def fetch(g, slot):
        plgpu.copy_gmem_to_smem(row_facts.at[b, g], at_x2R.at[slot], rows_here.at[slot])
        plgpu.copy_gmem_to_smem(q_hbm.at[b, head, g], q_xRH.at[slot], rows_here.at[slot])
        plgpu.copy_gmem_to_smem(lse_hbm.at[b, head, g], lse_xR.at[slot], rows_here.at[slot])

    plgpu.copy_gmem_to_smem(key_facts.at[b, j], at_2S, keys_here)
    plgpu.copy_gmem_to_smem(keys.at[b, head, block], k_SH, keys_here)
    plgpu.barrier_wait(keys_here)

    def use(g, slot, sums):
        plgpu.barrier_wait(rows_here.at[slot])
        raw_SR = product(k_SH, q_xRH.at[slot])
        keep_SR = gpu_blocks.seen(at_x2R.at[slot], at_2S, static, turned=True)
        lse_SR = lax.broadcast_in_dim(vector(lse_xR.at[slot], 1), raw_SR.shape, [1])
        return sums + xla_tiles.weights_given(raw_SR, keep_SR, lse_SR, static.score).sum(axis=1)

    start = plgpu.layout_cast(jnp.zeros((KEYS,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    sums_S[...] = gpu_blocks.walk(first[j], end[j], fetch, use, start)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(sums_S, sums_hbm.at[b, head, block])
    plgpu.wait_smem_to_gmem(0)
