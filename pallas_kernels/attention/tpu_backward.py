"""Attention's gradients on TPU: two Pallas kernels that recompute a tile's weights from the log-sum-exp.

`_dq` loops, for each query block, over the key blocks that it sees; `_dkv`, for each key block, over the
query blocks that see it. Each gradient accumulates in VMEM and is written once, at the price of computing
the scores twice. Blocks out of the window, in the future or of other documents cost nothing, as in the
forward kernel.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2, with its one loop split in two.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.attention import operands, tpu_blocks, xla_streamed, xla_tiles
from pallas_kernels.attention.operands import Residuals, StaticOptions, TokenPositions
from pallas_kernels.attention.tpu_blocks import block_index, fold_rows, matmul_precision, matmul_transposed
from pallas_kernels.attention.xla_streamed import BlockGrid
from pallas_kernels.typing import Interpret, Ref


def backward(
    static: StaticOptions, interpret: Interpret, saved: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients dq_BTNH, dk_BSKH, dv_BSKH."""
    q_BTNH, k_BSKH, v_BSKH, positions, out_BTNH, lse_BTN = saved
    dout_BTNH, dlse_BTN = cotangents
    (T, N), (S, K) = q_BTNH.shape[1:3], k_BSKH.shape[1:3]
    acc_dtype = jnp.float32
    delta_BTN = jnp.sum(out_BTNH.astype(acc_dtype) * dout_BTNH.astype(acc_dtype), axis=-1) - dlse_BTN
    grid = tpu_blocks.make_grid(static, positions, T, S, N // K)
    rows = (q_BTNH, dout_BTNH, lse_BTN[..., None], delta_BTN[..., None])
    rows_BKRx = [fold_rows(grid, operands.by_group(x, K)) for x in rows]
    keys_BKSH = [grid.pad_keys(operands.by_head(x), 2) for x in (k_BSKH, v_BSKH)]
    meta = tpu_blocks.token_meta(grid, q_BTNH.shape[0], N // K)
    call = functools.partial(
        _call, static=static, positions=positions, grid=grid, interpret=interpret, dtype=q_BTNH.dtype
    )
    (dq_BKRH,) = call(_dq, (grid.first_n, grid.end_n), meta, rows_BKRx, keys_BKSH, by_query=True)
    dk_BKSH, dv_BKSH = call(
        _dkv, xla_streamed.block_ranges(grid.block_mask_nm.T), meta, rows_BKRx, keys_BKSH, by_query=False
    )
    dq_BTNH = operands.by_query(tpu_blocks.unfold_rows(grid, dq_BKRH))
    return dq_BTNH, operands.by_head(dk_BKSH[:, :, :S]), operands.by_head(dv_BKSH[:, :, :S])


def _call(
    kernel: Callable[..., None],
    ranges: tuple[jax.Array, jax.Array],
    meta: tuple[jax.Array, jax.Array],
    rows_BKRx: Sequence[jax.Array],
    keys_BKSH: Sequence[jax.Array],
    *,
    static: StaticOptions,
    positions: TokenPositions,
    grid: BlockGrid,
    interpret: Interpret,
    dtype: DTypeLike,
    by_query: bool,
) -> Any:
    """Calls one of the two kernels. `by_query`: a grid step holds a block of queries and key blocks pass."""
    B, K, R, H = rows_BKRx[0].shape
    height, bk = R // grid.n, grid.bk
    held, passing = (grid.bq, bk) if by_query else (bk, grid.bq)
    n_held, n_passing = (grid.n, grid.m) if by_query else (grid.m, grid.n)
    steps = tpu_blocks.max_blocks_in_view(static, positions, held, passing, n_passing)

    def index(is_held: bool) -> Callable[..., Any]:
        """The index map of the held block, or of the passing blocks."""
        return (lambda i, j, *n: i) if is_held else block_index

    row, key = index(by_query), index(not by_query)

    def row_block(width: int) -> Any:
        return pl.BlockSpec((None, None, height, width), lambda b, h, i, j, *n: (b, h, row(i, j, *n), 0))

    key_block = pl.BlockSpec((None, None, bk, H), lambda b, h, i, j, *n: (b, h, key(i, j, *n), 0))
    block, length = (row_block(H), height) if by_query else (key_block, bk)
    results = 1 if by_query else 2
    pairs = B * K * height * bk * n_held * steps
    return pl.pallas_call(
        functools.partial(kernel, static=static, steps=steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, n_held, steps),
            in_specs=[
                pl.BlockSpec((None, height, 2), lambda b, h, i, j, *n: (b, row(i, j, *n), 0)),
                pl.BlockSpec((None, 2, bk), lambda b, h, i, j, *n: (b, 0, key(i, j, *n))),
                *(row_block(x.shape[3]) for x in rows_BKRx),
                key_block,
                key_block,
            ],
            out_specs=[block] * results,
            scratch_shapes=[pltpu.VMEM((length, H), jnp.float32)] * results,
        ),
        out_shape=[jax.ShapeDtypeStruct((B, K, n_held * length, H), dtype)] * results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=tpu_blocks.cost_estimate(2 * (2 + results), pairs, H, *rows_BKRx, *keys_BKSH),
        interpret=interpret,
    )(*ranges, *meta, *rows_BKRx, *keys_BKSH)


def _dq(
    first: Ref,
    end: Ref,
    row_meta_R2: Ref,
    key_meta_2S: Ref,
    q_RH: Ref,
    dout_RH: Ref,
    lse_R1: Ref,
    delta_R1: Ref,
    k_SH: Ref,
    v_SH: Ref,
    dq_RH: Ref,
    sum_RH: Ref,
    *,
    static: StaticOptions,
    steps: int,
) -> None:
    def add() -> None:
        _, dscore_RS = _slopes(row_meta_R2, key_meta_2S, q_RH, dout_RH, lse_R1, delta_R1, k_SH, v_SH, static)
        sum_RH[...] += _matmul(dscore_RS.astype(k_SH.dtype), k_SH[...], contract=1)

    _accumulate(first, end, add, [(sum_RH, dq_RH)], steps)


def _dkv(
    first: Ref,
    end: Ref,
    row_meta_R2: Ref,
    key_meta_2S: Ref,
    q_RH: Ref,
    dout_RH: Ref,
    lse_R1: Ref,
    delta_R1: Ref,
    k_SH: Ref,
    v_SH: Ref,
    dk_SH: Ref,
    dv_SH: Ref,
    k_sum: Ref,
    v_sum: Ref,
    *,
    static: StaticOptions,
    steps: int,
) -> None:
    def add() -> None:
        weight_RS, dscore_RS = _slopes(
            row_meta_R2, key_meta_2S, q_RH, dout_RH, lse_R1, delta_R1, k_SH, v_SH, static
        )
        k_sum[...] += _matmul(dscore_RS.astype(q_RH.dtype), q_RH[...], contract=0)
        v_sum[...] += _matmul(weight_RS.astype(dout_RH.dtype), dout_RH[...], contract=0)

    _accumulate(first, end, add, [(k_sum, dk_SH), (v_sum, dv_SH)], steps)


def _slopes(
    row_meta_R2: Ref,
    key_meta_2S: Ref,
    q_RH: Ref,
    dout_RH: Ref,
    lse_R1: Ref,
    delta_R1: Ref,
    k_SH: Ref,
    v_SH: Ref,
    static: StaticOptions,
) -> tuple[jax.Array, jax.Array]:
    """Weights of a tile, and the gradient of its raw products."""
    raw_RS, dweight_RS = matmul_transposed(q_RH[...], k_SH[...]), matmul_transposed(dout_RH[...], v_SH[...])
    mask_RS = tpu_blocks.mask(row_meta_R2[...], key_meta_2S[...], static)
    return xla_tiles.score_gradients(raw_RS, dweight_RS, mask_RS, lse_R1[...], delta_R1[...], static.score)


def _accumulate(
    first: Ref, end: Ref, add: Callable[[], None], sums: list[tuple[Ref, Ref]], steps: int
) -> None:
    """Zeroes the sums at the first step, calls `add` within the range of blocks, writes at the last step."""
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        for total, _ in sums:
            total[...] = jnp.zeros_like(total)

    pl.when(first[i] + j < end[i])(add)

    @pl.when(j == steps - 1)
    def _() -> None:
        for total, out in sums:
            out[...] = total[...].astype(out.dtype)


def _matmul(a_RS: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    """a · b over axis `contract` of a and the first axis of b, float32."""
    return lax.dot_general(
        a_RS,
        b,
        (((contract,), (0,)), ((), ())),
        precision=matmul_precision(b),
        preferred_element_type=jnp.float32,
    )
