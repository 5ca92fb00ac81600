"""Softmax weights of all positions on TPU, from the log-sum-exp that `tpu` returns, for the scores of H2O.

One grid step is one logical page of one row: its keys against all queries of the row. A page that no query
sees is not read; its weights are 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.attention.tpu_blocks import cost_estimate, matmul_transposed
from pallas_kernels.masks import oldest, visible
from pallas_kernels.paged import Pool
from pallas_kernels.typing import Interpret, Ref


def weights(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    lse_BCN: jax.Array,
    *,
    window: int | None,
    score: ScoreTransform,
    interpret: Interpret,
) -> jax.Array:
    """Returns weights_BCNS, float32."""
    (B, C, N, H), P = q_BCNH.shape, table_BP.shape[1]
    K, t = pool.n_kv_heads, pool.page_size
    G = N // K
    rows = -(-C * G // 16) * 16

    def by_head(x_BCNetc: jax.Array) -> jax.Array:
        """[B, C, N, x] to [B, K, rows, x]; padding rows are queries beyond every count."""
        x = jnp.moveaxis(x_BCNetc.reshape(B, C, K, G, -1), 2, 1).reshape(B, K, C * G, -1)
        return jnp.pad(x, ((0, 0), (0, 0), (0, rows - C * G), (0, 0)))

    def row_block(width: int) -> Any:
        return pl.BlockSpec((None, K, rows, width), lambda b, j, *_: (b, 0, 0, 0))

    def page(
        b: jax.Array, j: jax.Array, table: Ref, start: Ref, count: Ref
    ) -> tuple[jax.Array, int, int, int]:
        seen = _page_is_visible(j * t, t, start[b], count[b], window)
        return jnp.where(seen, table[b, j], 0), 0, 0, 0

    weights_BPKRt = pl.pallas_call(
        functools.partial(_kernel, G=G, window=window, score=score),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, P),
            in_specs=[row_block(H), row_block(1), pl.BlockSpec((None, K, t, H), page)],
            out_specs=pl.BlockSpec((None, None, K, rows, t), lambda b, j, *_: (b, j, 0, 0, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((B, P, K, rows, t), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost_estimate(2, B * N * C * P * t, H, q_BCNH, pool.keys),
        interpret=interpret,
    )(table_BP, start_B, count_B, by_head(q_BCNH), by_head(xla_tiles.finite(lse_BCN)), pool.keys)
    weights_BCKGPt = weights_BPKRt[:, :, :, : C * G].reshape(B, P, K, C, G, t).transpose(0, 3, 2, 4, 1, 5)
    return weights_BCKGPt.reshape(B, C, N, P * t)


def _page_is_visible(
    first: jax.Array, t: int, start: jax.Array, count: jax.Array, window: int | None
) -> jax.Array:
    """Whether some query of a row sees one of the positions first .. first + t - 1."""
    last_query = start + count - 1
    return (count > 0) & (first <= last_query) & (first + t > oldest(start, window))


def _kernel(
    table: Ref,
    start: Ref,
    count: Ref,
    q_KRH: Ref,
    lse_KR1: Ref,
    k_KtH: Ref,
    weights_KRt: Ref,
    *,
    G: int,
    window: int | None,
    score: ScoreTransform,
) -> None:
    b, j = pl.program_id(0), pl.program_id(1)
    K, rows, t = weights_KRt.shape
    seen = _page_is_visible(j * t, t, start[b], count[b], window)

    @pl.when(~seen)
    def _() -> None:
        weights_KRt[...] = jnp.zeros_like(weights_KRt)

    @pl.when(seen)
    def _() -> None:
        query_Rt = lax.broadcasted_iota(jnp.int32, (rows, t), 0) // G
        key_Rt = j * t + lax.broadcasted_iota(jnp.int32, (rows, t), 1)
        mask_Rt = visible(start[b] + query_Rt - key_Rt, window) & (query_Rt < count[b])
        for h in range(K):
            raw_Rt = matmul_transposed(q_KRH[h], k_KtH[h])
            weights_KRt[h] = xla_tiles.weights_from_lse(raw_Rt, mask_Rt, lse_KR1[h], score)
