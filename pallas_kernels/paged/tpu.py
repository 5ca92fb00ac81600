"""Paged attention on TPU: a kernel that loops over the page table of each row and copies pages on demand.

One grid step is one block of a row's queries with all heads. It loops over groups of pages, from the first
page that its oldest query sees to the page of its newest query, with double buffering: while one group is
multiplied, the next is copied from HBM. Pages out of view are not copied, and their table entries are not
read.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import operands, xla_tiles
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.attention.tpu_blocks import cost_estimate, matmul_precision, matmul_transposed
from pallas_kernels.masks import oldest, visible
from pallas_kernels.paged import PagedCall, Pool, tpu_weights
from pallas_kernels.typing import Interpret, Ref

# Rows (queries x G) of a tile, and keys fetched at a time.
ROWS, KEYS = 256, 256


def unsupported(call: PagedCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if call.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{call.dtype} is neither float32 nor bfloat16"
    if call.layout != "rows":
        return f"the pool keeps its keys in {call.layout}; this kernel reads rows"
    if call.page_size % 8:
        return f"pages of {call.page_size} positions are not whole tiles of 8"
    return None


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
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns out_BCNH, lse_BCN, and weights_BCNS or None. `interpret`: True, or `pltpu.InterpretParams`."""
    B, C, N, H = q_BCNH.shape
    K, t = pool.n_kv_heads, pool.page_size
    G = N // K
    bq = min(max(1, ROWS // G), C)
    n = -(-C // bq)
    # The rows of a tile are a whole number of sublanes. Padding rows are queries beyond every count.
    rows = -(-bq * G // 16) * 16
    q_BKnRH = jnp.moveaxis(q_BCNH.reshape(B, C, K, G, H), 2, 1)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, n * bq - C), (0, 0), (0, 0))).reshape(B, K, n, bq * G, H)
    q_BKnRH = jnp.pad(q_BKnRH, ((0, 0), (0, 0), (0, 0), (0, rows - bq * G), (0, 0)))
    group = min(max(1, KEYS // t), table_BP.shape[1])
    score = operands.ScoreTransform(float(scale), softcap)

    def block(*tail: int) -> Any:
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
        cost_estimate=cost_estimate(
            4, B * N * C * table_BP.shape[1] * t, H, q_BKnRH, q_BKnRH, pool.keys, pool.values
        ),
        interpret=interpret,
    )(table_BP, start_B, count_B, q_BKnRH, pool.keys, pool.values)

    def by_query(x_BKnRetc: jax.Array) -> jax.Array:
        x = x_BKnRetc[:, :, :, : bq * G].reshape(B, K, n * bq, G, -1)[:, :, :C]
        return jnp.moveaxis(x, 1, 2).reshape(B, C, N, -1)

    out_BCNH, lse_BCN = by_query(out), by_query(lse)[..., 0]
    if not return_weights:
        return out_BCNH, lse_BCN, None
    arrays = q_BCNH, pool, table_BP, start_B, count_B, lse_BCN
    return out_BCNH, lse_BCN, tpu_weights.weights(*arrays, window=window, score=score, interpret=interpret)


def wait_for(copies: Iterator[Any]) -> None:
    """Waits for asynchronous copies."""
    for copy in copies:
        copy.wait()


def _kernel(
    table: Ref,
    start: Ref,
    count: Ref,
    q_KRH: Ref,
    keys: Ref,
    values: Ref,
    out_KRH: Ref,
    lse_KR1: Ref,
    k_buffer: Ref,
    v_buffer: Ref,
    arrived: Ref,
    part: Ref,
    top: Ref,
    total: Ref,
    *,
    bq: int,
    G: int,
    group: int,
    window: int | None,
    score: ScoreTransform,
) -> None:
    b, i = pl.program_id(0), pl.program_id(1)
    K, rows, _ = q_KRH.shape
    t = k_buffer.shape[3]
    P = table.shape[1]
    n_queries = jnp.minimum(count[b] - i * bq, bq)
    position = start[b] + i * bq
    first = jnp.maximum(oldest(position, window), 0) // t
    end = jnp.where(n_queries > 0, (position + n_queries - 1) // t + 1, first)
    groups = (end - first + group - 1) // group

    def copies(g: jax.Array | int, slot: jax.Array | int) -> Iterator[Any]:
        """The copies of page group g. Beyond the last page the last one is copied again, and masked."""
        for x in range(group):
            page = table[b, jnp.minimum(jnp.minimum(first + g * group + x, end - 1), P - 1)]
            yield pltpu.make_async_copy(keys.at[page], k_buffer.at[slot, x], arrived.at[0, slot])
            yield pltpu.make_async_copy(values.at[page], v_buffer.at[slot, x], arrived.at[1, slot])

    def fetch(g: jax.Array | int) -> None:
        """Starts the copies of page group g."""
        for copy in copies(g, g % 2):
            copy.start()

    part[...] = jnp.zeros_like(part)
    top[...] = jnp.full_like(top, -jnp.inf)
    total[...] = jnp.zeros_like(total)
    pl.when(groups > 0)(lambda: fetch(0))

    def step(g: jax.Array, _: None) -> None:
        slot = g % 2
        pl.when(g + 1 < groups)(lambda: fetch(g + 1))
        wait_for(copies(g, slot))
        query_RS = lax.broadcasted_iota(jnp.int32, (rows, group * t), 0) // G
        key_RS = (first + g * group) * t + lax.broadcasted_iota(jnp.int32, (rows, group * t), 1)
        mask_RS = visible(position + query_RS - key_RS, window) & (query_RS < n_queries)
        for h in range(K):
            k_SH, v_SH = (x[slot, :, h].reshape(group * t, -1) for x in (k_buffer, v_buffer))
            weight_RS, best, sums = xla_tiles.unnormalized_weights(
                matmul_transposed(q_KRH[h], k_SH), mask_RS, score
            )
            more_RH = jnp.dot(
                weight_RS.astype(v_SH.dtype),
                v_SH,
                precision=matmul_precision(v_SH),
                preferred_element_type=jnp.float32,
            )
            before = xla_tiles.PartialAttention(part[h], top[h], total[h])
            part[h], top[h], total[h] = xla_tiles.merge(
                before, xla_tiles.PartialAttention(more_RH, best, sums)
            )

    lax.fori_loop(0, groups, step, None)
    for h in range(K):
        out, lse = xla_tiles.finalize(xla_tiles.PartialAttention(part[h], top[h], total[h]))
        out_KRH[h] = out.astype(out_KRH.dtype)
        lse_KR1[h] = lse[:, None]
