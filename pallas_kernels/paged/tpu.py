"""Paged attention on TPU: a kernel that walks each row's page table and copies pages as it needs them.

One grid step is one block of a row's queries with all heads. It loops over the pages from the first that its
oldest query sees to the page of its newest query, a few at a time, double buffered: while one group of pages
is multiplied the next is on its way from HBM. Pages out of view are not copied and their table entries are
not read.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.tpu_blocks import cost, exact, rows_by_keys
from pallas_kernels.masks import oldest, visible
from pallas_kernels.paged import tpu_weights

# Rows (queries x G) of a tile, and keys fetched at a time.
ROWS, KEYS = 256, 256


def refuses(ask) -> str | None:
    if ask.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{ask.dtype} is neither float32 nor bfloat16"
    if ask.layout != "rows":
        return f"the pool keeps its keys in {ask.layout}; this kernel reads rows"
    if ask.page_size % 8:
        return f"pages of {ask.page_size} positions are not whole tiles of 8"
    return None


def attend(
    q_BCNH, pool, table_BP, start_B, count_B, *, window, scale, softcap, return_weights, interpret=False
):
    """Returns out_BCNH, lse_BCN, and weights_BCNS or None. `interpret`: True, or `pltpu.InterpretParams`."""
    B, C, N, H = q_BCNH.shape
    K, t = pool.n_kv_heads, pool.page_size
    G = N // K
    bq = min(max(1, ROWS // G), C)
    n = -(-C // bq)
    # A tile's rows are a whole number of sublanes; the rows added are queries beyond every count.
    rows = -(-bq * G // 16) * 16
    q_BKnRH = jnp.moveaxis(q_BCNH.reshape(B, C, K, G, H), 2, 1)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, n * bq - C), (0, 0), (0, 0))).reshape(B, K, n, bq * G, H)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, 0), (0, rows - bq * G), (0, 0)))
    group = min(max(1, KEYS // t), table_BP.shape[1])
    score = xla_tiles.Score(float(scale), softcap)

    def block(*tail):
        return pl.BlockSpec((None, K, None, rows, *tail), lambda b, i, *_: (b, 0, i, 0, *(0 for _ in tail)))

    everywhere = pl.BlockSpec(memory_space=pl.ANY)
    buffer = pltpu.VMEM((2, group, K, t, H), pool.keys.dtype)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, bq=bq, G=G, group=group, window=window, score=score),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, n),
            in_specs=[block(H), everywhere, everywhere],
            out_specs=[block(H), block(1)],
            scratch_shapes=[
                buffer,
                buffer,
                pltpu.SemaphoreType.DMA((2, 2)),
                pltpu.VMEM((K, rows, H), jnp.float32),
                pltpu.VMEM((K, rows, 1), jnp.float32),
                pltpu.VMEM((K, rows, 1), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_BKnRH.shape, q_BCNH.dtype),
            jax.ShapeDtypeStruct((*q_BKnRH.shape[:4], 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost(4, B * N * C * table_BP.shape[1] * t, H, q_BKnRH, q_BKnRH, pool.keys, pool.values),
        interpret=interpret,
    )(table_BP, start_B, count_B, q_BKnRH, pool.keys, pool.values)

    def by_query(x_BKnRetc):
        x = x_BKnRetc[:, :, :, : bq * G].reshape(B, K, n * bq, G, -1)[:, :, :C]
        return jnp.moveaxis(x, 1, 2).reshape(B, C, N, -1)

    out_BCNH, lse_BCN = by_query(out), by_query(lse)[..., 0]
    if not return_weights:
        return out_BCNH, lse_BCN, None
    rows = q_BCNH, pool, table_BP, start_B, count_B, lse_BCN
    return out_BCNH, lse_BCN, tpu_weights.weights(*rows, window=window, score=score, interpret=interpret)


def wait_for(copies):
    for copy in copies:
        copy.wait()


def _kernel(
    table, start, count, q_KRH, keys, values, out_KRH, lse_KR1, k_buffer, v_buffer, arrived, part, top, total,
    *, bq, G, group, window, score,
):  # fmt: skip
    b, i = pl.program_id(0), pl.program_id(1)
    K, rows, _ = q_KRH.shape
    t = k_buffer.shape[3]
    P = table.shape[1]
    asked = jnp.minimum(count[b] - i * bq, bq)  # this block's queries
    position = start[b] + i * bq
    first = jnp.maximum(oldest(position, window), 0) // t
    end = jnp.where(asked > 0, (position + asked - 1) // t + 1, first)
    groups = (end - first + group - 1) // group

    def copies(g, slot):
        """The copies of page group g: beyond the last page the last is copied again, and masked."""
        for x in range(group):
            page = table[b, jnp.minimum(jnp.minimum(first + g * group + x, end - 1), P - 1)]
            yield pltpu.make_async_copy(keys.at[page], k_buffer.at[slot, x], arrived.at[0, slot])
            yield pltpu.make_async_copy(values.at[page], v_buffer.at[slot, x], arrived.at[1, slot])

    def fetch(g):
        for copy in copies(g, g % 2):
            copy.start()

    part[...] = jnp.zeros_like(part)
    top[...] = jnp.full_like(top, -jnp.inf)
    total[...] = jnp.zeros_like(total)
    pl.when(groups > 0)(lambda: fetch(0))

    def step(g, _):
        slot = g % 2
        pl.when(g + 1 < groups)(lambda: fetch(g + 1))
        wait_for(copies(g, slot))
        query_RS = lax.broadcasted_iota(jnp.int32, (rows, group * t), 0) // G
        key_RS = (first + g * group) * t + lax.broadcasted_iota(jnp.int32, (rows, group * t), 1)
        keep_RS = visible(position + query_RS - key_RS, window) & (query_RS < asked)
        for h in range(K):
            k_SH, v_SH = (x[slot, :, h].reshape(group * t, -1) for x in (k_buffer, v_buffer))
            weight_RS, best, sums = xla_tiles.weigh(rows_by_keys(q_KRH[h], k_SH), keep_RS, score)
            more_RH = jnp.dot(
                weight_RS.astype(v_SH.dtype), v_SH, precision=exact(v_SH), preferred_element_type=jnp.float32
            )
            before = xla_tiles.Partial(part[h], top[h], total[h])
            part[h], top[h], total[h] = xla_tiles.join(before, xla_tiles.Partial(more_RH, best, sums))

    lax.fori_loop(0, groups, step, None)
    for h in range(K):
        out, lse = xla_tiles.finish(xla_tiles.Partial(part[h], top[h], total[h]))
        out_KRH[h] = out.astype(out_KRH.dtype)
        lse_KR1[h] = lse[:, None]
