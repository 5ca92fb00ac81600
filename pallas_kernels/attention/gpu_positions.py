"""Attention on Hopper for explicit positions and packed documents: one warpgroup per block of 64 rows.

`xla_streamed.BlockGrid` computes the range of key blocks of each row block from positions and segments.
Within a tile, the mask comes from the metadata of its rows and keys.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gpu_blocks
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, STAGES, TILED
from pallas_kernels.attention.operands import StaticOptions, TokenPositions
from pallas_kernels.typing import Ref


def forward(
    static: StaticOptions, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, positions: TokenPositions
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and lse_BTN."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    dtype = q_BTNH.dtype
    folded = gpu_blocks.FoldedBlocks(static, positions, B, T, S, N // K)
    grid, q_BKnRH = folded.grid, folded.rows(q_BTNH, K)
    out, lse = plgpu.kernel(
        functools.partial(_kernel, static=static),
        out_type=[
            jax.ShapeDtypeStruct(q_BKnRH.shape, dtype),
            jax.ShapeDtypeStruct(q_BKnRH.shape[:-1], jnp.float32),
        ],
        scratch_types={
            "q_RH": plgpu.SMEM((ROWS, H), dtype, transforms=TILED),
            "k_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
            "v_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
            "p_RS": plgpu.SMEM((ROWS, KEYS), dtype, transforms=TILED),
            "row_meta_2R": plgpu.SMEM((2, ROWS), jnp.int32),
            "key_meta_x2S": plgpu.SMEM((STAGES, 2, KEYS), jnp.int32),
            "lse_R": plgpu.SMEM((ROWS,), jnp.float32),
            "rows_ready": plgpu.Barrier(num_arrivals=2),
            "k_ready": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            "v_ready": plgpu.Barrier(num_barriers=STAGES),
        },
        grid=(grid.n, K, B),
        grid_names=("block", "head", "row"),
    )(
        grid.first_n,
        grid.end_n,
        folded.row_meta_Bn2R,
        folded.key_meta_Bm2S,
        q_BKnRH,
        folded.keys(k_BSKH),
        folded.keys(v_BSKH),
    )
    return folded.queries(out), folded.queries(lse)


def _kernel(
    first: Ref,
    end: Ref,
    row_meta: Ref,
    key_meta: Ref,
    q_hbm: Ref,
    keys: Ref,
    values: Ref,
    out_hbm: Ref,
    lse_hbm: Ref,
    *,
    static: StaticOptions,
    q_RH: Ref,
    k_xSH: Ref,
    v_xSH: Ref,
    p_RS: Ref,
    row_meta_2R: Ref,
    key_meta_x2S: Ref,
    lse_R: Ref,
    rows_ready: Ref,
    k_ready: Ref,
    v_ready: Ref,
) -> None:
    i, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))

    def fetch(g: jax.Array, slot: jax.Array) -> None:
        block = pl.ds(g * KEYS, KEYS)
        plgpu.copy_gmem_to_smem(key_meta.at[b, g], key_meta_x2S.at[slot], k_ready.at[slot])
        plgpu.copy_gmem_to_smem(keys.at[b, head, block], k_xSH.at[slot], k_ready.at[slot])
        plgpu.copy_gmem_to_smem(values.at[b, head, block], v_xSH.at[slot], v_ready.at[slot])

    plgpu.copy_gmem_to_smem(row_meta.at[b, i], row_meta_2R, rows_ready)
    plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i], q_RH, rows_ready)
    plgpu.barrier_wait(rows_ready)

    def use(g: jax.Array, slot: jax.Array, carry: gpu_blocks.Carry) -> gpu_blocks.Carry:
        plgpu.barrier_wait(k_ready.at[slot])

        def mask(row_RS: jax.Array, key_RS: jax.Array) -> jax.Array:
            return gpu_blocks.mask(row_meta_2R, key_meta_x2S.at[slot], static)

        def wait_for_values() -> None:
            plgpu.barrier_wait(v_ready.at[slot])

        buffers = q_RH, k_xSH.at[slot], v_xSH.at[slot], p_RS
        return gpu_blocks.add_key_block(*buffers, mask, carry, static.score, wait_for_values)

    carry = gpu_blocks.pipelined_loop(first[i], end[i], fetch, use, gpu_blocks.empty_carry(q_RH.shape[1]))
    q_RH[...], lse_R[...] = (x.astype(ref.dtype) for x, ref in zip(gpu_blocks.finalize(carry), (q_RH, lse_R)))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_RH, out_hbm.at[b, head, i])
    plgpu.copy_smem_to_gmem(lse_R, lse_hbm.at[b, head, i])
    plgpu.wait_smem_to_gmem(0)
