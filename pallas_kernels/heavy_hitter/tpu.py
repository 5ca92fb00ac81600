"""Column sums on TPU: attention's kernel turned by ninety degrees.

One grid step is a key block against one of the query blocks that see it; the sums of the key block stay in
VMEM while the query blocks pass. No values are read and nothing is written twice.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import xla, xla_streamed, xla_tiles
from pallas_kernels.attention.tpu_blocks import (
    cost,
    facts,
    fold_rows,
    grid_of,
    keep,
    reach,
    rows_by_keys,
    within,
)


def refuses(ask) -> str | None:
    if ask.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{ask.dtype} is neither float32 nor bfloat16"
    return None


def column_sums(q_BTNH, k_BSKH, lse_BTN, *, window, scale, softcap, places, interpret=False):
    """Returns sums_BKS. `interpret`: True, or `pltpu.InterpretParams`."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    G = N // K
    static, places = xla.Static(window, True, xla_tiles.Score(float(scale), softcap)), xla.Places(*places)
    grid = grid_of(static, places, T, S, G)
    rows, bk = grid.bq * G, grid.bk
    steps = reach(static, places, bk, grid.bq, grid.n)
    q_BKRH, lse_BKR = (fold_rows(grid, xla.by_group(x, K)) for x in (q_BTNH, lse_BTN))
    k_BKSH = grid.pad_keys(xla.by_head(k_BSKH), 2)

    def query_block(width):
        return pl.BlockSpec((None, None, rows, width), lambda b, h, j, i, *n: (b, h, within(j, i, *n), 0))

    sums_BK1S = pl.pallas_call(
        functools.partial(_kernel, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, grid.m, steps),
            in_specs=[
                pl.BlockSpec((None, rows, 2), lambda b, h, j, i, *n: (b, within(j, i, *n), 0)),
                pl.BlockSpec((None, 2, bk), lambda b, h, j, i, *_: (b, 0, j)),
                query_block(H),
                query_block(1),
                pl.BlockSpec((None, None, bk, H), lambda b, h, j, i, *_: (b, h, j, 0)),
            ],
            out_specs=pl.BlockSpec((None, None, 1, bk), lambda b, h, j, i, *_: (b, h, 0, j)),
        ),
        out_shape=jax.ShapeDtypeStruct((B, K, 1, k_BKSH.shape[2]), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=cost(2, B * N * grid.m * bk * steps * grid.bq, H, q_BKRH, k_BKSH),
        interpret=interpret,
    )(*xla_streamed.ranges(grid.may_nm.T), *facts(grid, B, G), q_BKRH, lse_BKR[..., None], k_BKSH)
    return sums_BK1S[:, :, 0, :S]


def _kernel(first_m, end_m, at_R2, at_2S, q_RH, lse_R1, k_SH, sums_1S, *, static):
    j, i = pl.program_id(2), pl.program_id(3)

    @pl.when(i == 0)
    def _():
        sums_1S[...] = jnp.zeros_like(sums_1S)

    @pl.when(first_m[j] + i < end_m[j])
    def _():
        raw_RS = rows_by_keys(q_RH[...], k_SH[...])
        keep_RS = keep(at_R2[...], at_2S[...], static)
        weight_RS = xla_tiles.weights_given(raw_RS, keep_RS, lse_R1[...], static.score)
        sums_1S[...] += jnp.sum(weight_RS, axis=0, keepdims=True)
