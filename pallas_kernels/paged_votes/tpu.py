"""Column sums on TPU: one grid step is one logical page of one row, its keys against the chunk's queries.

A page that no voting query sees is not read; its sums are 0. Each sum is written once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import operands, xla_tiles
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.attention.tpu_blocks import cost_estimate, matmul_transposed
from pallas_kernels.masks import visible
from pallas_kernels.paged import Pool
from pallas_kernels.paged_votes import PageSumsCall
from pallas_kernels.typing import Interpret, Ref

MAX_ROWS = 4096  # queries x heads of a group that lie in VMEM beside a page
BLOCK = 128  # of them that meet the page's keys at a time: more spill out of the registers


def unsupported(call: PageSumsCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if call.layout != "rows":
        return f"the pool keeps its keys in {call.layout}; this kernel reads rows"
    if call.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{call.dtype} is neither float32 nor bfloat16"
    if (rows := call.shape_BCNH[1] * call.shape_BCNH[2] // call.n_kv_heads) > MAX_ROWS:
        return f"{rows} queries of a key/value head; {MAX_ROWS} fit VMEM"
    return None


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
    interpret: Interpret = False,
) -> jax.Array:
    """Returns sums_BKS. `interpret`: True, or `pltpu.InterpretParams`."""
    (B, C, N, H), P = q_BCNH.shape, table_BP.shape[1]
    K, t = pool.n_kv_heads, pool.page_size
    G = N // K
    block = min(BLOCK, -(-C * G // 16) * 16)
    rows = -(-C * G // block) * block

    def by_head(x_BCNetc: jax.Array) -> jax.Array:
        """[B, C, N, x] to [B, K, rows, x]; padding rows are queries beyond every count."""
        x = jnp.moveaxis(x_BCNetc.reshape(B, C, K, G, -1), 2, 1).reshape(B, K, C * G, -1)
        return jnp.pad(x, ((0, 0), (0, 0), (0, rows - C * G), (0, 0)))

    def row_block(width: int) -> Any:
        return pl.BlockSpec((None, K, rows, width), lambda b, j, *_: (b, 0, 0, 0))

    def page(
        b: jax.Array, j: jax.Array, table: Ref, start: Ref, count: Ref, first: Ref
    ) -> tuple[jax.Array, int, int, int]:
        seen = _is_seen(j * t, start[b], count[b], first[b])
        return jnp.where(seen, table[b, j], 0), 0, 0, 0

    score = operands.ScoreTransform(float(scale), softcap)
    sums_BPKt = pl.pallas_call(
        functools.partial(_kernel, G=G, block=block, score=score),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, P),
            in_specs=[row_block(H), row_block(1), pl.BlockSpec((None, K, t, H), page)],
            out_specs=pl.BlockSpec((None, None, K, t), lambda b, j, *_: (b, j, 0, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((B, P, K, t), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost_estimate(2, B * N * C * P * t, H, q_BCNH, pool.keys),
        interpret=interpret,
    )(
        table_BP,
        start_B,
        count_B,
        first_B,
        by_head(q_BCNH),
        by_head(xla_tiles.finite(lse_BCN)),
        pool.keys,
    )
    return jnp.moveaxis(sums_BPKt, 1, 2).reshape(B, K, P * t)


def _is_seen(key: jax.Array, start: jax.Array, count: jax.Array, first: jax.Array) -> jax.Array:
    """Whether some voting query of a row sees the position `key`."""
    last_query = start + count - 1
    return (count > 0) & (last_query >= first) & (key <= last_query)


def _kernel(
    table: Ref,
    start: Ref,
    count: Ref,
    first: Ref,
    q_KRH: Ref,
    lse_KR1: Ref,
    k_KtH: Ref,
    sums_Kt: Ref,
    *,
    G: int,
    block: int,
    score: ScoreTransform,
) -> None:
    b, j = pl.program_id(0), pl.program_id(1)
    K, t = sums_Kt.shape
    seen = _is_seen(j * t, start[b], count[b], first[b])

    def add_block(i: jax.Array, sums_1t: jax.Array, h: int) -> jax.Array:
        at = pl.ds(i * block, block)
        query_Rt = (i * block + lax.broadcasted_iota(jnp.int32, (block, t), 0)) // G
        key_Rt = j * t + lax.broadcasted_iota(jnp.int32, (block, t), 1)
        at_Rt = start[b] + query_Rt
        mask_Rt = visible(at_Rt - key_Rt, None) & (query_Rt < count[b]) & (at_Rt >= first[b])
        raw_Rt = matmul_transposed(q_KRH[h, at], k_KtH[h])
        weight_Rt = xla_tiles.weights_from_lse(raw_Rt, mask_Rt, lse_KR1[h, at], score)
        return sums_1t + jnp.sum(weight_Rt, axis=0, keepdims=True)

    @pl.when(~seen)
    def _() -> None:
        sums_Kt[...] = jnp.zeros_like(sums_Kt)

    @pl.when(seen)
    def _() -> None:
        # Blocks from the first query that votes and sees the page's first key, to the row's last query.
        least = jnp.maximum(jnp.maximum(first[b], j * t) - start[b], 0)
        low, high = least * G // block, (count[b] * G + block - 1) // block
        for h in range(K):
            zero = jnp.zeros((1, t), jnp.float32)
            sums_Kt[h : h + 1] = lax.fori_loop(low, high, functools.partial(add_block, h=h), zero)
