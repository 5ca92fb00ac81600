"""Column sums on Hopper: one warpgroup per 64 positions of a row loops over the chunk's blocks of queries.

Keys are the rows of the product, so a sum over queries is a sum along a row. Pages come by TMA, once; the
next block of queries is copied while one is multiplied. Positions that no voting query sees cost no copy.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gpu_blocks, operands, xla_tiles
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, STAGES, TILED, load_vector, matmul_transposed
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.masks import visible
from pallas_kernels.paged import Pool
from pallas_kernels.paged_votes import PageSumsCall
from pallas_kernels.typing import Ref


def unsupported(call: PageSumsCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if call.layout != "rows":
        return f"the pool keeps its keys in {call.layout}; this kernel reads rows"
    if call.page_size not in (8, 16, 32, 64):
        return f"pages of {call.page_size} positions do not tile {KEYS} keys"
    return gpu_blocks.unsupported_shape(call.dtype, call.shape_BCNH[3], call.shape_BCNH[2] // call.n_kv_heads)


def column_sums(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    lse_BCN: jax.Array,
    *,
    first_B: jax.Array,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Returns sums_BKS."""
    (B, C, N, H), P, t = q_BCNH.shape, table_BP.shape[1], pool.page_size
    K, dtype = pool.n_kv_heads, q_BCNH.dtype
    G = N // K
    bq = min(ROWS // G, C)
    n = -(-C // bq)

    def blocks(x_BCNetc: jax.Array) -> jax.Array:
        """[B, C, N, ...] to [B, K, n, ROWS, ...]."""
        etc = x_BCNetc.shape[3:]
        x = jnp.moveaxis(x_BCNetc.reshape(B, C, K, G, *etc), 2, 1)
        none = ((0, 0),) * len(etc)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, n * bq - C), (0, 0), *none)).reshape(B, K, n, bq * G, *etc)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, ROWS - bq * G), *none))

    groups = -(-P * t // KEYS)
    score = operands.ScoreTransform(float(scale), softcap)
    sums_BKS = plgpu.kernel(
        functools.partial(_kernel, bq=bq, G=G, t=t, n=n, score=score),
        out_type=jax.ShapeDtypeStruct((B, K, groups * KEYS), jnp.float32),
        scratch_types={
            "k_SH": plgpu.SMEM((KEYS, H), dtype, transforms=TILED),
            "q_xRH": plgpu.SMEM((STAGES, ROWS, H), dtype, transforms=TILED),
            "lse_xR": plgpu.SMEM((STAGES, ROWS), jnp.float32),
            "sums_S": plgpu.SMEM((KEYS,), jnp.float32),
            "keys_ready": plgpu.Barrier(num_arrivals=KEYS // t),
            "rows_ready": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        },
        grid=(groups, K, B),
        grid_names=("group", "head", "row"),
    )(table_BP, start_B, count_B, first_B, blocks(q_BCNH), blocks(xla_tiles.finite(lse_BCN)), pool.keys)
    return sums_BKS[:, :, : P * t]


def _kernel(
    table: Ref,
    start: Ref,
    count: Ref,
    first: Ref,
    q_hbm: Ref,
    lse_hbm: Ref,
    keys: Ref,
    sums_hbm: Ref,
    *,
    bq: int,
    G: int,
    t: int,
    n: int,
    score: ScoreTransform,
    k_SH: Ref,
    q_xRH: Ref,
    lse_xR: Ref,
    sums_S: Ref,
    keys_ready: Ref,
    rows_ready: Ref,
) -> None:
    g, head, b = (lax.axis_index(name) for name in ("group", "head", "row"))
    position, last_query = start[b], start[b] + count[b] - 1
    group, end = KEYS // t, jnp.where(count[b] > 0, last_query // t + 1, 0)
    seen = (count[b] > 0) & (last_query >= first[b]) & (g * KEYS <= last_query)
    # Blocks of queries from the first that votes and sees the group's first key, to the row's last.
    least = jnp.maximum(jnp.maximum(first[b], g * KEYS) - position, 0)
    lo = jnp.where(seen, least // bq, 0)
    hi = jnp.where(seen, jnp.minimum((count[b] + bq - 1) // bq, n), 0)

    @pl.when(seen)
    def _() -> None:
        for x in range(group):  # a page in view replaces one behind the row's end, whose keys are masked
            page = table[b, jnp.minimum(g * group + x, end - 1)]
            plgpu.copy_gmem_to_smem(keys.at[page, head], k_SH.at[pl.ds(x * t, t)], keys_ready)
        plgpu.barrier_wait(keys_ready)

    def fetch(i: jax.Array, slot: jax.Array) -> None:
        plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i], q_xRH.at[slot], rows_ready.at[slot])
        plgpu.copy_gmem_to_smem(lse_hbm.at[b, head, i], lse_xR.at[slot], rows_ready.at[slot])

    def use(i: jax.Array, slot: jax.Array, sums: jax.Array) -> jax.Array:
        plgpu.barrier_wait(rows_ready.at[slot])
        raw_SR = matmul_transposed(k_SH, q_xRH.at[slot])
        key_SR, row_SR = (
            plgpu.broadcasted_iota(jnp.int32, (KEYS, ROWS), axis, layout=plgpu.Layout.WGMMA)
            for axis in (0, 1)
        )
        query_SR = i * bq + (row_SR // G if G > 1 else row_SR)
        at_SR = position + query_SR
        mask_SR = visible(at_SR - (key_SR + g * KEYS), None) & (query_SR < count[b]) & (at_SR >= first[b])
        mask_SR &= row_SR < bq * G
        lse_SR = lax.broadcast_in_dim(load_vector(lse_xR.at[slot], 1), raw_SR.shape, [1])
        return sums + xla_tiles.weights_from_lse(raw_SR, mask_SR, lse_SR, score).sum(axis=1)

    zero = plgpu.layout_cast(jnp.zeros((KEYS,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    sums_S[...] = gpu_blocks.pipelined_loop(lo, hi, fetch, use, zero)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(sums_S, sums_hbm.at[b, head, pl.ds(g * KEYS, KEYS)])
    plgpu.wait_smem_to_gmem(0)
