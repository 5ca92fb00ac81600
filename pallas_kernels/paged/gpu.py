"""Paged attention on Hopper: a warpgroup a (row, query block, head, split), pages by TMA, products by wgmma.

The keys a query block needs are dealt out to `splits` warpgroups, so that a long context keeps all
multiprocessors busy even when the batch is small; their partial results are joined afterwards in XLA. Each
warpgroup keeps `STAGES` groups of pages in flight: while one is multiplied the next ones are on their way.
Pages out of view are neither copied nor looked up.

Rows of a product are queries x G, padded to the 64 that wgmma wants: decoding is bound by memory, and the
idle rows cost nothing.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, STAGES, TILED, nothing, refuses_shape, tile
from pallas_kernels.masks import oldest, visible
from pallas_kernels.paged import gpu_weights

MULTIPROCESSORS = 132


def refuses(ask) -> str | None:
    N, H = ask.shape_BCNH[2:]
    if ask.layout != "rows":
        return f"the pool keeps its keys in {ask.layout}; this kernel reads rows"
    if ask.page_size not in (8, 16, 32, 64):
        return f"pages of {ask.page_size} positions do not tile {KEYS} keys"
    return refuses_shape(ask.dtype, H, N // ask.n_kv_heads)


def attend(q_BCNH, pool, table_BP, start_B, count_B, *, window, scale, softcap, return_weights, splits=None):
    """Returns out_BCNH, lse_BCN, and weights_BCNS or None."""
    B, C, N, H = q_BCNH.shape
    K, t = pool.n_kv_heads, pool.page_size
    G = N // K
    bq = min(ROWS // G, C)
    n = -(-C // bq)
    if splits is None:
        most = max(1, table_BP.shape[1] * t // (2 * KEYS * STAGES))
        splits = min(most, -(-2 * MULTIPROCESSORS // (B * K * n)))
    q_BKnRH = jnp.moveaxis(q_BCNH.reshape(B, C, K, G, H), 2, 1)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, n * bq - C), (0, 0), (0, 0))).reshape(B, K, n, bq * G, H)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, 0), (0, ROWS - bq * G), (0, 0)))

    dtype, score = q_BCNH.dtype, xla_tiles.Score(float(scale), softcap)
    scratch = {
        "q_RH": plgpu.SMEM((ROWS, H), dtype, transforms=TILED),
        "k_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
        "v_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
        "p_RS": plgpu.SMEM((ROWS, KEYS), dtype, transforms=TILED),
        "out_RH": plgpu.SMEM((ROWS, H), jnp.float32),
        "top_R": plgpu.SMEM((ROWS,), jnp.float32),
        "total_R": plgpu.SMEM((ROWS,), jnp.float32),
        "q_here": plgpu.Barrier(),
        "k_here": plgpu.Barrier(num_arrivals=KEYS // t, num_barriers=STAGES),
        "v_here": plgpu.Barrier(num_arrivals=KEYS // t, num_barriers=STAGES),
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

    out, lse = xla_tiles.finish(_join(xla_tiles.Partial(out, top[..., None], total[..., None])))

    def by_query(x_BKnRetc):
        x = x_BKnRetc[:, :, :, : bq * G].reshape(B, K, n * bq, G, -1)[:, :, :C]
        return jnp.moveaxis(x, 1, 2).reshape(B, C, N, -1)

    weights = None
    if return_weights:
        rows = q_BKnRH, lse, pool, table_BP, start_B, count_B
        weights = by_query(gpu_weights.weights(*rows, bq=bq, G=G, window=window, score=score))
        weights = weights[..., : table_BP.shape[1] * t]
    return by_query(out).astype(dtype), by_query(lse)[..., 0], weights


def _join(part):
    """Joins the splits, axis 3. A split without keys says total 0, whatever its top."""
    top = jnp.where(part.total_XTG1 > 0, part.top_XTG1, -jnp.inf)
    best = jnp.max(top, axis=3)
    factor = jnp.exp(top - xla_tiles.finite(best)[:, :, :, None])
    out = jnp.sum(part.out_XTGH * factor, axis=3)
    return xla_tiles.Partial(out, best, jnp.sum(part.total_XTG1 * factor, axis=3))


def _kernel(
    table, start, count, q_hbm, keys, values, out_hbm, top_hbm, total_hbm,
    *, bq, G, t, window, score, splits,
    q_RH, k_xSH, v_xSH, p_RS, out_RH, top_R, total_R, q_here, k_here, v_here,
):  # fmt: skip
    split, i, head, b = (lax.axis_index(name) for name in ("split", "block", "head", "row"))
    H, group = q_RH.shape[1], KEYS // t
    asked = jnp.minimum(count[b] - i * bq, bq)  # this block's queries
    position = start[b] + i * bq
    first = jnp.maximum(oldest(position, window), 0) // t
    end = jnp.where(asked > 0, (position + asked - 1) // t + 1, first)
    groups = (end - first + group - 1) // group
    share = (groups + splits - 1) // splits
    lo, hi = split * share, jnp.minimum((split + 1) * share, groups)

    def fetch(g):
        """Starts the copies of page group g: beyond the last page the last is copied again, and masked."""
        slot = lax.rem(g - lo, STAGES)
        for x in range(group):
            page = table[b, jnp.minimum(first + g * group + x, end - 1)]
            at = slot, pl.ds(x * t, t)
            plgpu.copy_gmem_to_smem(keys.at[page, head], k_xSH.at[at], k_here.at[slot])
            plgpu.copy_gmem_to_smem(values.at[page, head], v_xSH.at[at], v_here.at[slot])

    plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i], q_RH, q_here)
    for ahead in range(STAGES - 1):
        pl.when(lo + ahead < hi)(functools.partial(fetch, lo + ahead))
    plgpu.barrier_wait(q_here)

    def step(g, carry):
        slot = lax.rem(g - lo, STAGES)
        pl.when(g + STAGES - 1 < hi)(lambda: fetch(g + STAGES - 1))
        plgpu.barrier_wait(k_here.at[slot])

        def keep(row_RS, key_RS):
            query_RS = row_RS // G if G > 1 else row_RS
            age_RS = position + query_RS - (key_RS + (first + g * group) * t)
            return visible(age_RS, window) & (query_RS < asked)

        def values_here():
            plgpu.barrier_wait(v_here.at[slot])

        return tile(q_RH, k_xSH.at[slot], v_xSH.at[slot], p_RS, keep, carry, score, values_here)

    out, top, total = lax.fori_loop(lo, hi, step, nothing(H))
    out_RH[...] = out
    top_R[...] = top
    total_R[...] = total
    plgpu.commit_smem()
    where = b, head, i, split
    for result, target in ((out_RH, out_hbm), (top_R, top_hbm), (total_R, total_hbm)):
        plgpu.copy_smem_to_gmem(result, target.at[where])
    plgpu.wait_smem_to_gmem(0)
