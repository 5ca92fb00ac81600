"""Attention on Hopper at any positions and of packed documents: a warpgroup a block of 64 rows.

Which key blocks a row block meets is found beforehand by `streamed.Grid`, from positions and segments; in a
tile, the facts of its rows and keys say who sees whom.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gpu_blocks
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, STAGES, TILED


def forward(static, q_BTNH, k_BSKH, v_BSKH, places):
    """Returns out_BTNH and lse_BTN."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    dtype = q_BTNH.dtype
    folded = gpu_blocks.Folded(static, places, B, T, S, N // K)
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
            "at_2R": plgpu.SMEM((2, ROWS), jnp.int32),
            "at_x2S": plgpu.SMEM((STAGES, 2, KEYS), jnp.int32),
            "lse_R": plgpu.SMEM((ROWS,), jnp.float32),
            "rows_here": plgpu.Barrier(num_arrivals=2),
            "k_here": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            "v_here": plgpu.Barrier(num_barriers=STAGES),
        },
        grid=(grid.n, K, B),
        grid_names=("block", "head", "row"),
    )(
        grid.first_n,
        grid.end_n,
        folded.row_facts_Bn2R,
        folded.key_facts_Bm2S,
        q_BKnRH,
        folded.keys(k_BSKH),
        folded.keys(v_BSKH),
    )
    return folded.queries(out), folded.queries(lse)


def _kernel(
    first, end, row_facts, key_facts, q_hbm, keys, values, out_hbm, lse_hbm,
    *, static, q_RH, k_xSH, v_xSH, p_RS, at_2R, at_x2S, lse_R, rows_here, k_here, v_here,
):  # fmt: skip
    i, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))

    def fetch(g, slot):
        block = pl.ds(g * KEYS, KEYS)
        plgpu.copy_gmem_to_smem(key_facts.at[b, g], at_x2S.at[slot], k_here.at[slot])
        plgpu.copy_gmem_to_smem(keys.at[b, head, block], k_xSH.at[slot], k_here.at[slot])
        plgpu.copy_gmem_to_smem(values.at[b, head, block], v_xSH.at[slot], v_here.at[slot])

    plgpu.copy_gmem_to_smem(row_facts.at[b, i], at_2R, rows_here)
    plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i], q_RH, rows_here)
    plgpu.barrier_wait(rows_here)

    def use(g, slot, carry):
        plgpu.barrier_wait(k_here.at[slot])

        def keep(row_RS, key_RS):
            return gpu_blocks.seen(at_2R, at_x2S.at[slot], static)

        def values_here():
            plgpu.barrier_wait(v_here.at[slot])

        operands = q_RH, k_xSH.at[slot], v_xSH.at[slot], p_RS
        return gpu_blocks.tile(*operands, keep, carry, static.score, values_here)

    carry = gpu_blocks.walk(first[i], end[i], fetch, use, gpu_blocks.nothing(q_RH.shape[1]))
    q_RH[...], lse_R[...] = (x.astype(ref.dtype) for x, ref in zip(gpu_blocks.finish(carry), (q_RH, lse_R)))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_RH, out_hbm.at[b, head, i])
    plgpu.copy_smem_to_gmem(lse_R, lse_hbm.at[b, head, i])
    plgpu.wait_smem_to_gmem(0)
