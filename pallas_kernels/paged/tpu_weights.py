"""The weight of every position on TPU, from the log-sum-exp that `tpu` returns; H2O scores sum them up.

One grid step is one logical page of one row: its keys against all of the row's queries. A page that no query
sees is not read; its weights are 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.tpu_blocks import cost, rows_by_keys
from pallas_kernels.masks import oldest, visible


def weights(q_BCNH, pool, table_BP, start_B, count_B, lse_BCN, *, window, score, interpret):
    """Returns weights_BCNS, float32."""
    (B, C, N, H), P = q_BCNH.shape, table_BP.shape[1]
    K, t = pool.n_kv_heads, pool.page_size
    G = N // K
    rows = -(-C * G // 16) * 16

    def by_head(x_BCNetc):
        """[B, C, N, x] to [B, K, rows, x]; the rows added are queries beyond every count."""
        x = jnp.moveaxis(x_BCNetc.reshape(B, C, K, G, -1), 2, 1).reshape(B, K, C * G, -1)
        return jnp.pad(x, ((0, 0), (0, 0), (0, rows - C * G), (0, 0)))

    def row_block(width):
        return pl.BlockSpec((None, K, rows, width), lambda b, j, *_: (b, 0, 0, 0))

    def page(b, j, table, start, count):
        seen = _seen(j * t, t, start[b], count[b], window)
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
        cost_estimate=cost(2, B * N * C * P * t, H, q_BCNH, pool.keys),
        interpret=interpret,
    )(table_BP, start_B, count_B, by_head(q_BCNH), by_head(xla_tiles.finite(lse_BCN)), pool.keys)
    weights_BCKGPt = weights_BPKRt[:, :, :, : C * G].reshape(B, P, K, C, G, t).transpose(0, 3, 2, 4, 1, 5)
    return weights_BCKGPt.reshape(B, C, N, P * t)


def _seen(first, t, start, count, window):
    """Whether some query of a row sees one of the positions first .. first + t - 1."""
    last_query = start + count - 1
    return (count > 0) & (first <= last_query) & (first + t > oldest(start, window))


def _kernel(table, start, count, q_KRH, lse_KR1, k_KtH, weights_KRt, *, G, window, score):
    b, j = pl.program_id(0), pl.program_id(1)
    K, rows, t = weights_KRt.shape
    seen = _seen(j * t, t, start[b], count[b], window)

    @pl.when(~seen)
    def _():
        weights_KRt[...] = jnp.zeros_like(weights_KRt)

    @pl.when(seen)
    def _():
        query_Rt = lax.broadcasted_iota(jnp.int32, (rows, t), 0) // G
        key_Rt = j * t + lax.broadcasted_iota(jnp.int32, (rows, t), 1)
        keep_Rt = visible(start[b] + query_Rt - key_Rt, window) & (query_Rt < count[b])
        for h in range(K):
            raw_Rt = rows_by_keys(q_KRH[h], k_KtH[h])
            weights_KRt[h] = xla_tiles.weights_given(raw_Rt, keep_Rt, lse_KR1[h], score)
