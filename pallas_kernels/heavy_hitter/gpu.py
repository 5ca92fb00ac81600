"""Column sums on Hopper: one warpgroup per block of 64 keys loops over the row blocks that see it.

Keys are the rows of the product, so a sum over queries is a sum along a row, within a quarter of a warp. No
values are read, and each sum is written once.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gpu_blocks, operands, xla_streamed, xla_tiles
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, STAGES, TILED, load_vector, matmul_transposed
from pallas_kernels.attention.operands import StaticOptions, TokenPositions
from pallas_kernels.heavy_hitter import ColumnSumsCall
from pallas_kernels.typing import Ref


def unsupported(call: ColumnSumsCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return gpu_blocks.unsupported_shape(
        call.dtype, call.shape_BTNH[3], call.shape_BTNH[2] // call.shape_BSKH[2]
    )


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
    dtype = q_BTNH.dtype
    static = operands.StaticOptions(window, True, operands.ScoreTransform(float(scale), softcap))
    folded = gpu_blocks.FoldedBlocks(static, positions, B, T, S, N // K)
    keys = folded.keys(k_BSKH)
    sums_BKS = plgpu.kernel(
        functools.partial(_kernel, static=static),
        out_type=jax.ShapeDtypeStruct(keys.shape[:3], jnp.float32),
        scratch_types={
            "k_SH": plgpu.SMEM((KEYS, H), dtype, transforms=TILED),
            "key_meta_2S": plgpu.SMEM((2, KEYS), jnp.int32),
            "q_xRH": plgpu.SMEM((STAGES, ROWS, H), dtype, transforms=TILED),
            "row_meta_x2R": plgpu.SMEM((STAGES, 2, ROWS), jnp.int32),
            "lse_xR": plgpu.SMEM((STAGES, ROWS), jnp.float32),
            "sums_S": plgpu.SMEM((KEYS,), jnp.float32),
            "keys_ready": plgpu.Barrier(num_arrivals=2),
            "rows_ready": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
        },
        grid=(folded.grid.m, K, B),
        grid_names=("block", "head", "row"),
    )(
        *xla_streamed.block_ranges(folded.grid.block_mask_nm.T),
        folded.row_meta_Bn2R,
        folded.key_meta_Bm2S,
        folded.rows(q_BTNH, K),
        folded.rows(xla_tiles.finite(lse_BTN), K),
        keys,
    )
    return sums_BKS[:, :, :S]


def _kernel(
    first: Ref,
    end: Ref,
    row_meta: Ref,
    key_meta: Ref,
    q_hbm: Ref,
    lse_hbm: Ref,
    keys: Ref,
    sums_hbm: Ref,
    *,
    static: StaticOptions,
    k_SH: Ref,
    key_meta_2S: Ref,
    q_xRH: Ref,
    row_meta_x2R: Ref,
    lse_xR: Ref,
    sums_S: Ref,
    keys_ready: Ref,
    rows_ready: Ref,
) -> None:
    j, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))
    block = pl.ds(j * KEYS, KEYS)

    def fetch(g: jax.Array, slot: jax.Array) -> None:
        plgpu.copy_gmem_to_smem(row_meta.at[b, g], row_meta_x2R.at[slot], rows_ready.at[slot])
        plgpu.copy_gmem_to_smem(q_hbm.at[b, head, g], q_xRH.at[slot], rows_ready.at[slot])
        plgpu.copy_gmem_to_smem(lse_hbm.at[b, head, g], lse_xR.at[slot], rows_ready.at[slot])

    plgpu.copy_gmem_to_smem(key_meta.at[b, j], key_meta_2S, keys_ready)
    plgpu.copy_gmem_to_smem(keys.at[b, head, block], k_SH, keys_ready)
    plgpu.barrier_wait(keys_ready)

    def use(g: jax.Array, slot: jax.Array, sums: jax.Array) -> jax.Array:
        plgpu.barrier_wait(rows_ready.at[slot])
        raw_SR = matmul_transposed(k_SH, q_xRH.at[slot])
        mask_SR = gpu_blocks.mask(row_meta_x2R.at[slot], key_meta_2S, static, transposed=True)
        lse_SR = lax.broadcast_in_dim(load_vector(lse_xR.at[slot], 1), raw_SR.shape, [1])
        return sums + xla_tiles.weights_from_lse(raw_SR, mask_SR, lse_SR, static.score).sum(axis=1)

    start = plgpu.layout_cast(jnp.zeros((KEYS,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    sums_S[...] = gpu_blocks.pipelined_loop(first[j], end[j], fetch, use, start)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(sums_S, sums_hbm.at[b, head, block])
    plgpu.wait_smem_to_gmem(0)
