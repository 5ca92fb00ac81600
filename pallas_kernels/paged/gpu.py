"""Paged attention on Hopper: one warpgroup per (row, query block, head, split), with TMA and wgmma.

The keys of a query block are split over `splits` warpgroups, so that a long context occupies all
multiprocessors even for a small batch; XLA merges the partial results. Each warpgroup keeps `STAGES` groups
of pages in flight: while one is multiplied, the next ones are copied. Pages out of view are not copied, and
their table entries are not read.

Rows of a product are queries x G, padded to the 64 rows of wgmma. Decoding is bound by memory, so padding
rows cost nothing.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import operands, xla_tiles
from pallas_kernels.attention.gpu_blocks import (
    KEYS,
    ROWS,
    STAGES,
    TILED,
    Carry,
    add_key_block,
    empty_carry,
    unsupported_shape,
)
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.masks import oldest, visible
from pallas_kernels.paged import PagedCall, Pool, gpu_weights
from pallas_kernels.typing import Ref

MULTIPROCESSORS = 132


def unsupported(call: PagedCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    N, H = call.shape_BCNH[2:]
    if call.layout != "rows":
        return f"the pool keeps its keys in {call.layout}; this kernel reads rows"
    if call.page_size not in (8, 16, 32, 64):
        return f"pages of {call.page_size} positions do not tile {KEYS} keys"
    return unsupported_shape(call.dtype, H, N // call.n_kv_heads)


def attend(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
    return_weights: bool,
    splits: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns out_BCNH, lse_BCN, and weights_BCNS or None."""
    B, C, N, H = q_BCNH.shape
    K, t = pool.n_kv_heads, pool.page_size
    G = N // K
    bq = min(ROWS // G, C)
    n = -(-C // bq)
    if splits is None:
        max_splits = max(1, table_BP.shape[1] * t // (2 * KEYS * STAGES))
        splits = min(max_splits, -(-2 * MULTIPROCESSORS // (B * K * n)))
    q_BKnRH = jnp.moveaxis(q_BCNH.reshape(B, C, K, G, H), 2, 1)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, n * bq - C), (0, 0), (0, 0))).reshape(B, K, n, bq * G, H)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, 0), (0, ROWS - bq * G), (0, 0)))

    dtype, score = q_BCNH.dtype, operands.ScoreTransform(float(scale), softcap)
    scratch = {
        "q_RH": plgpu.SMEM((ROWS, H), dtype, transforms=TILED),
        "k_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
        "v_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
        "p_RS": plgpu.SMEM((ROWS, KEYS), dtype, transforms=TILED),
        "out_RH": plgpu.SMEM((ROWS, H), jnp.float32),
        "top_R": plgpu.SMEM((ROWS,), jnp.float32),
        "total_R": plgpu.SMEM((ROWS,), jnp.float32),
        "q_ready": plgpu.Barrier(),
        "k_ready": plgpu.Barrier(num_arrivals=KEYS // t, num_barriers=STAGES),
        "v_ready": plgpu.Barrier(num_arrivals=KEYS // t, num_barriers=STAGES),
    }
    parts = (B, K, n, splits, ROWS)
    out, top, total = plgpu.kernel(
        functools.partial(_kernel, bq=bq, G=G, t=t, window=window, score=score, splits=splits),
        out_type=[
            jax.ShapeDtypeStruct((*parts, H), jnp.float32),
            jax.ShapeDtypeStruct(parts, jnp.float32),
            jax.ShapeDtypeStruct(parts, jnp.float32),
        ],
        scratch_types=scratch,
        grid=(splits, n, K, B),
        grid_names=("split", "block", "head", "row"),
    )(table_BP, start_B, count_B, q_BKnRH, pool.keys, pool.values)

    out, lse = xla_tiles.finalize(
        _merge_splits(xla_tiles.PartialAttention(out, top[..., None], total[..., None]))
    )

    def by_query(x_BKnRetc: jax.Array) -> jax.Array:
        x = x_BKnRetc[:, :, :, : bq * G].reshape(B, K, n * bq, G, -1)[:, :, :C]
        return jnp.moveaxis(x, 1, 2).reshape(B, C, N, -1)

    weights = None
    if return_weights:
        rows = q_BKnRH, lse, pool, table_BP, start_B, count_B
        weights = by_query(gpu_weights.weights(*rows, bq=bq, G=G, window=window, score=score))
        weights = weights[..., : table_BP.shape[1] * t]
    return by_query(out).astype(dtype), by_query(lse)[..., 0], weights


def _merge_splits(part: xla_tiles.PartialAttention) -> xla_tiles.PartialAttention:
    """Merges the splits, axis 3. A split without keys has total 0 and an undefined top."""
    top = jnp.where(part.total_XTG1 > 0, part.top_XTG1, -jnp.inf)
    best = jnp.max(top, axis=3)
    factor = jnp.exp(top - xla_tiles.finite(best)[:, :, :, None])
    out = jnp.sum(part.out_XTGH * factor, axis=3)
    return xla_tiles.PartialAttention(out, best, jnp.sum(part.total_XTG1 * factor, axis=3))


def _kernel(
    table: Ref,
    start: Ref,
    count: Ref,
    q_hbm: Ref,
    keys: Ref,
    values: Ref,
    out_hbm: Ref,
    top_hbm: Ref,
    total_hbm: Ref,
    *,
    bq: int,
    G: int,
    t: int,
    window: int | None,
    score: ScoreTransform,
    splits: int,
    q_RH: Ref,
    k_xSH: Ref,
    v_xSH: Ref,
    p_RS: Ref,
    out_RH: Ref,
    top_R: Ref,
    total_R: Ref,
    q_ready: Ref,
    k_ready: Ref,
    v_ready: Ref,
) -> None:
    split, i, head, b = (lax.axis_index(name) for name in ("split", "block", "head", "row"))
    H, group = q_RH.shape[1], KEYS // t
    n_queries = jnp.minimum(count[b] - i * bq, bq)
    position = start[b] + i * bq
    first = jnp.maximum(oldest(position, window), 0) // t
    end = jnp.where(n_queries > 0, (position + n_queries - 1) // t + 1, first)
    groups = (end - first + group - 1) // group
    split_size = (groups + splits - 1) // splits
    lo, hi = split * split_size, jnp.minimum((split + 1) * split_size, groups)

    def fetch(g: jax.Array) -> None:
        """Starts the copies of page group g. Beyond the last page it copies the last one again, masked."""
        slot = lax.rem(g - lo, STAGES)
        for x in range(group):
            page = table[b, jnp.minimum(first + g * group + x, end - 1)]
            at = slot, pl.ds(x * t, t)
            plgpu.copy_gmem_to_smem(keys.at[page, head], k_xSH.at[at], k_ready.at[slot])
            plgpu.copy_gmem_to_smem(values.at[page, head], v_xSH.at[at], v_ready.at[slot])

    plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i], q_RH, q_ready)
    for ahead in range(STAGES - 1):
        pl.when(lo + ahead < hi)(functools.partial(fetch, lo + ahead))
    plgpu.barrier_wait(q_ready)

    def step(g: jax.Array, carry: Carry) -> Carry:
        slot = lax.rem(g - lo, STAGES)
        pl.when(g + STAGES - 1 < hi)(lambda: fetch(g + STAGES - 1))
        plgpu.barrier_wait(k_ready.at[slot])

        def mask(row_RS: jax.Array, key_RS: jax.Array) -> jax.Array:
            query_RS = row_RS // G if G > 1 else row_RS
            age_RS = position + query_RS - (key_RS + (first + g * group) * t)
            return visible(age_RS, window) & (query_RS < n_queries)

        def wait_for_values() -> None:
            plgpu.barrier_wait(v_ready.at[slot])

        return add_key_block(q_RH, k_xSH.at[slot], v_xSH.at[slot], p_RS, mask, carry, score, wait_for_values)

    out, top, total = lax.fori_loop(lo, hi, step, empty_carry(H))
    out_RH[...] = out
    top_R[...] = top
    total_R[...] = total
    plgpu.commit_smem()
    where = b, head, i, split
    for result, target in ((out_RH, out_hbm), (top_R, top_hbm), (total_R, total_hbm)):
        plgpu.copy_smem_to_gmem(result, target.at[where])
    plgpu.wait_smem_to_gmem(0)
