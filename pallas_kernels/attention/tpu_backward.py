"""Attention's gradients on TPU: two Pallas kernels that recompute a tile's weights from the log-sum-exp.

`_dq` walks, for each query block, the key blocks that it sees; `_dkv`, for each key block, the query blocks
that see it. So each gradient stays in VMEM while it grows and is written once, at the price of the scores
being computed twice. Blocks out of the window, in the future or of other documents cost nothing, as in the
forward kernel.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2, with its one loop taken apart as TPU kernels do.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import tpu_blocks, xla, xla_streamed, xla_tiles
from pallas_kernels.attention.tpu_blocks import exact, fold_rows, rows_by_keys, within


def backward(static, interpret, saved, cotangents):
    """Gradients dq_BTNH, dk_BSKH, dv_BSKH."""
    q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN = saved
    dout_BTNH, dlse_BTN = cotangents
    (T, N), (S, K) = q_BTNH.shape[1:3], k_BSKH.shape[1:3]
    wide = jnp.float32
    delta_BTN = jnp.sum(out_BTNH.astype(wide) * dout_BTNH.astype(wide), axis=-1) - dlse_BTN
    grid = tpu_blocks.grid_of(static, places, T, S, N // K)
    rows = (q_BTNH, dout_BTNH, lse_BTN[..., None], delta_BTN[..., None])
    rows_BKRx = [fold_rows(grid, xla.by_group(x, K)) for x in rows]
    keys_BKSH = [grid.pad_keys(xla.by_head(x), 2) for x in (k_BSKH, v_BSKH)]
    at = tpu_blocks.facts(grid, q_BTNH.shape[0], N // K)
    call = functools.partial(
        _call, static=static, places=places, grid=grid, interpret=interpret, dtype=q_BTNH.dtype
    )
    (dq_BKRH,) = call(_dq, (grid.first_n, grid.end_n), at, rows_BKRx, keys_BKSH, by_query=True)
    dk_BKSH, dv_BKSH = call(
        _dkv, xla_streamed.ranges(grid.may_nm.T), at, rows_BKRx, keys_BKSH, by_query=False
    )
    dq_BTNH = xla.by_query(tpu_blocks.unfold_rows(grid, dq_BKRH))
    return dq_BTNH, *(xla.by_head(x[:, :, :S]) for x in (dk_BKSH, dv_BKSH))


def _call(kernel, ranges, at, rows_BKRx, keys_BKSH, *, static, places, grid, interpret, dtype, by_query):
    """One of the two kernels. `by_query`: a step's own block is of queries, and keys pass by."""
    B, K, R, H = rows_BKRx[0].shape
    height, bk = R // grid.n, grid.bk
    mine, other = (grid.bq, bk) if by_query else (bk, grid.bq)
    own, others = (grid.n, grid.m) if by_query else (grid.m, grid.n)
    steps = tpu_blocks.reach(static, places, mine, other, others)

    def index(stays):
        """The block of a grid step along an axis that stays put, or passes by."""
        return (lambda i, j, *n: i) if stays else within

    row, key = index(by_query), index(not by_query)

    def row_block(width):
        return pl.BlockSpec((None, None, height, width), lambda b, h, i, j, *n: (b, h, row(i, j, *n), 0))

    key_block = pl.BlockSpec((None, None, bk, H), lambda b, h, i, j, *n: (b, h, key(i, j, *n), 0))
    block, length = (row_block(H), height) if by_query else (key_block, bk)
    results = 1 if by_query else 2
    pairs = B * K * height * bk * own * steps
    return pl.pallas_call(
        functools.partial(kernel, static=static, steps=steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, own, steps),
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
        out_shape=[jax.ShapeDtypeStruct((B, K, own * length, H), dtype)] * results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=tpu_blocks.cost(2 * (2 + results), pairs, H, *rows_BKRx, *keys_BKSH),
        interpret=interpret,
    )(*ranges, *at, *rows_BKRx, *keys_BKSH)


def _dq(first, end, at_R2, at_2S, q_RH, dout_RH, lse_R1, delta_R1, k_SH, v_SH, dq_RH, sum_RH, **sizes):
    def add():
        _, dscore_RS = _slopes(at_R2, at_2S, q_RH, dout_RH, lse_R1, delta_R1, k_SH, v_SH, sizes["static"])
        sum_RH[...] += _times(dscore_RS.astype(k_SH.dtype), k_SH[...], contract=1)

    _accumulate(first, end, add, [(sum_RH, dq_RH)], sizes["steps"])


def _dkv(
    first, end, at_R2, at_2S, q_RH, dout_RH, lse_R1, delta_R1, k_SH, v_SH, dk_SH, dv_SH, k_sum, v_sum, **sizes
):
    def add():
        weight_RS, dscore_RS = _slopes(
            at_R2, at_2S, q_RH, dout_RH, lse_R1, delta_R1, k_SH, v_SH, sizes["static"]
        )
        k_sum[...] += _times(dscore_RS.astype(q_RH.dtype), q_RH[...], contract=0)
        v_sum[...] += _times(weight_RS.astype(dout_RH.dtype), dout_RH[...], contract=0)

    _accumulate(first, end, add, [(k_sum, dk_SH), (v_sum, dv_SH)], sizes["steps"])


def _slopes(at_R2, at_2S, q_RH, dout_RH, lse_R1, delta_R1, k_SH, v_SH, static):
    """Weights of a tile and the gradient of its raw products."""
    raw_RS, dweight_RS = rows_by_keys(q_RH[...], k_SH[...]), rows_by_keys(dout_RH[...], v_SH[...])
    keep_RS = tpu_blocks.keep(at_R2[...], at_2S[...], static)
    return xla_tiles.slopes(raw_RS, dweight_RS, keep_RS, lse_R1[...], delta_R1[...], static.score)


def _accumulate(first, end, add, sums, steps):
    """Zeroes at the first step, `add`s where there is a block to add, writes at the last."""
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        for total, _ in sums:
            total[...] = jnp.zeros_like(total)

    pl.when(first[i] + j < end[i])(add)

    @pl.when(j == steps - 1)
    def _():
        for total, out in sums:
            out[...] = total[...].astype(out.dtype)


def _times(a_RS, b, contract):
    """a · b over axis `contract` of a and the first of b, float32."""
    return lax.dot_general(
        a_RS,
        b,
        (((contract,), (0,)), ((), ())),
        precision=exact(b),
        preferred_element_type=jnp.float32,
    )
