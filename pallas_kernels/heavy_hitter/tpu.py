"""Column sums on TPU: the attention kernel with the roles of queries and keys exchanged.

One grid step is a key block against one of the query blocks that see it. The sums of the key block stay in
VMEM while the query blocks pass. No values are read, and each sum is written once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import operands, xla_streamed, xla_tiles
from pallas_kernels.attention.operands import StaticOptions, TokenPositions
from pallas_kernels.attention.tpu_blocks import (
    block_index,
    cost_estimate,
    fold_rows,
    make_grid,
    mask,
    matmul_transposed,
    max_blocks_in_view,
    token_meta,
)
from pallas_kernels.heavy_hitter import ColumnSumsCall
from pallas_kernels.typing import Interpret, Ref


def unsupported(call: ColumnSumsCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if call.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{call.dtype} is neither float32 nor bfloat16"
    return None


def column_sums(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    lse_BTN: jax.Array,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
    positions: TokenPositions,
    interpret: Interpret = False,
) -> jax.Array:
    """Returns sums_BKS. `interpret`: True, or `pltpu.InterpretParams`."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    G = N // K
    static = operands.StaticOptions(window, True, operands.ScoreTransform(float(scale), softcap))
    grid = make_grid(static, positions, T, S, G)
    rows, bk = grid.bq * G, grid.bk
    steps = max_blocks_in_view(static, positions, bk, grid.bq, grid.n)
    q_BKRH, lse_BKR = (fold_rows(grid, operands.by_group(x, K)) for x in (q_BTNH, lse_BTN))
    k_BKSH = grid.pad_keys(operands.by_head(k_BSKH), 2)

    def query_block(width: int) -> Any:
        return pl.BlockSpec(
            (None, None, rows, width), lambda b, h, j, i, *n: (b, h, block_index(j, i, *n), 0)
        )

    sums_BK1S = pl.pallas_call(
        functools.partial(_kernel, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, grid.m, steps),
            in_specs=[
                pl.BlockSpec((None, rows, 2), lambda b, h, j, i, *n: (b, block_index(j, i, *n), 0)),
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
        cost_estimate=cost_estimate(2, B * N * grid.m * bk * steps * grid.bq, H, q_BKRH, k_BKSH),
        interpret=interpret,
    )(
        *xla_streamed.block_ranges(grid.block_mask_nm.T),
        *token_meta(grid, B, G),
        q_BKRH,
        lse_BKR[..., None],
        k_BKSH,
    )
    return sums_BK1S[:, :, 0, :S]


def _kernel(
    first_m: Ref,
    end_m: Ref,
    row_meta_R2: Ref,
    key_meta_2S: Ref,
    q_RH: Ref,
    lse_R1: Ref,
    k_SH: Ref,
    sums_1S: Ref,
    *,
    static: StaticOptions,
) -> None:
    j, i = pl.program_id(2), pl.program_id(3)

    @pl.when(i == 0)
    def _() -> None:
        sums_1S[...] = jnp.zeros_like(sums_1S)

    @pl.when(first_m[j] + i < end_m[j])
    def _() -> None:
        raw_RS = matmul_transposed(q_RH[...], k_SH[...])
        mask_RS = mask(row_meta_R2[...], key_meta_2S[...], static)
        weight_RS = xla_tiles.weights_from_lse(raw_RS, mask_RS, lse_R1[...], static.score)
        sums_1S[...] += jnp.sum(weight_RS, axis=0, keepdims=True)
