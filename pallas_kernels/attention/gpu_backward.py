"""Attention's gradients on Hopper: three kernels that recompute a tile's weights from the log-sum-exp.

`_dq` walks, for each row block, the key blocks that it sees; `_dkv`, for each key block, the row blocks that
see it, once for the values' gradient and once for the keys': both sums together with a product's result are
more than a warpgroup's registers hold at heads of 128. Weights pass through shared memory, as in the forward
kernel.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2, with its one loop taken apart.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gpu_blocks, xla_streamed, xla_tiles
from pallas_kernels.attention.gpu_blocks import KEYS, ROWS, STAGES, TILED, product, times, vector


def backward(static, saved, cotangents):
    """Gradients dq_BTNH, dk_BSKH, dv_BSKH."""
    q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN = saved
    dout_BTNH, dlse_BTN = cotangents
    (B, T, N, _), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    wide, dtype = jnp.float32, q_BTNH.dtype
    delta_BTN = jnp.sum(out_BTNH.astype(wide) * dout_BTNH.astype(wide), axis=-1) - dlse_BTN
    folded = gpu_blocks.Folded(static, places, B, T, S, N // K)
    q, dout = (folded.rows(x.astype(dtype), K) for x in (q_BTNH, dout_BTNH))
    # Per row: log-sum-exp and delta. A row that sees nothing is masked, whatever its log-sum-exp.
    stats = jnp.stack([folded.rows(x, K) for x in (xla_tiles.finite(lse_BTN), delta_BTN)], axis=3)
    keys, values = folded.keys(k_BSKH), folded.keys(v_BSKH)
    facts = folded.row_facts_Bn2R, folded.key_facts_Bm2S

    grid = folded.grid
    call = functools.partial(_call, static=static, dtype=dtype)
    dq = call(_dq, (grid.first_n, grid.end_n), *facts, q, dout, stats, keys, values, out=q)
    seen_by = xla_streamed.ranges(grid.may_nm.T)
    dk, dv = (
        call(
            functools.partial(_dkv, of_keys=of_keys), seen_by, *facts, q, dout, stats, keys, values, out=keys
        )
        for of_keys in (True, False)
    )
    return folded.queries(dq), *(jnp.swapaxes(x, 1, 2)[:, :S] for x in (dk, dv))


def _call(kernel, ranges, *arrays, out, static, dtype):
    """Both kernels hold one block of rows or keys, and walk over blocks of the other."""
    B, K, H = out.shape[0], out.shape[1], out.shape[-1]
    by_query = kernel is _dq
    held, passing = ((), (STAGES,)) if by_query else ((STAGES,), ())
    blocks = len(ranges[0])
    row_arrivals, key_arrivals = 4, 3
    return plgpu.kernel(
        functools.partial(kernel, static=static),
        out_type=jax.ShapeDtypeStruct(out.shape, dtype),
        scratch_types={
            "q_RH": plgpu.SMEM((*held, ROWS, H), dtype, transforms=TILED),
            "dout_RH": plgpu.SMEM((*held, ROWS, H), dtype, transforms=TILED),
            "stats_2R": plgpu.SMEM((*held, 2, ROWS), jnp.float32),
            "at_2R": plgpu.SMEM((*held, 2, ROWS), jnp.int32),
            "k_SH": plgpu.SMEM((*passing, KEYS, H), dtype, transforms=TILED),
            "v_SH": plgpu.SMEM((*passing, KEYS, H), dtype, transforms=TILED),
            "at_2S": plgpu.SMEM((*passing, 2, KEYS), jnp.int32),
            "weight": plgpu.SMEM((ROWS, KEYS), dtype, transforms=TILED),
            "rows_here": plgpu.Barrier(num_arrivals=row_arrivals, num_barriers=STAGES),
            "keys_here": plgpu.Barrier(num_arrivals=key_arrivals, num_barriers=STAGES),
        },
        grid=(blocks, K, B),
        grid_names=("block", "head", "row"),
    )(*ranges, *arrays)


def _dq(
    first, end, row_facts, key_facts, q_hbm, dout_hbm, stats_hbm, keys, values, dq_hbm,
    *, static, q_RH, dout_RH, stats_2R, at_2R, k_SH, v_SH, at_2S, weight, rows_here, keys_here,
):  # fmt: skip
    i, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))
    fetch_rows = _rows(row_facts, q_hbm, dout_hbm, stats_hbm, at_2R, q_RH, dout_RH, stats_2R, head, b)
    fetch_keys = _keys(key_facts, keys, values, at_2S, k_SH, v_SH, head, b)
    fetch_rows(i, None, rows_here.at[0])
    plgpu.barrier_wait(rows_here.at[0])

    def use(g, slot, dq):
        plgpu.barrier_wait(keys_here.at[slot])
        raw, dweight = product(q_RH, k_SH.at[slot]), product(dout_RH, v_SH.at[slot])
        lse, delta = (_spread(stats_2R.at[x], 0, raw.shape) for x in (0, 1))
        keep = gpu_blocks.seen(at_2R, at_2S.at[slot], static)
        _, dscore = xla_tiles.slopes(raw, dweight, keep, lse, delta, static.score)
        weight[...] = dscore.astype(weight.dtype)
        plgpu.commit_smem()
        return dq + times(weight, k_SH.at[slot])

    start = gpu_blocks.zeros(*q_RH.shape)
    dq = gpu_blocks.walk(
        first[i], end[i], lambda g, slot: fetch_keys(g, slot, keys_here.at[slot]), use, start
    )
    _put(dq, q_RH, dq_hbm.at[b, head, i])


def _dkv(
    first, end, row_facts, key_facts, q_hbm, dout_hbm, stats_hbm, keys, values, out_hbm,
    *, static, of_keys, q_RH, dout_RH, stats_2R, at_2R, k_SH, v_SH, at_2S, weight, rows_here, keys_here,
):  # fmt: skip
    j, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))
    fetch_rows = _rows(row_facts, q_hbm, dout_hbm, stats_hbm, at_2R, q_RH, dout_RH, stats_2R, head, b)
    fetch_keys = _keys(key_facts, keys, values, at_2S, k_SH, v_SH, head, b)
    fetch_keys(j, None, keys_here.at[0])
    plgpu.barrier_wait(keys_here.at[0])

    def use(g, slot, total):
        plgpu.barrier_wait(rows_here.at[slot])
        raw = product(k_SH, q_RH.at[slot])
        lse, delta = (_spread(stats_2R.at[slot, x], 1, raw.shape) for x in (0, 1))
        keep = gpu_blocks.seen(at_2R.at[slot], at_2S, static, turned=True)
        if of_keys:
            dweight, other = product(v_SH, dout_RH.at[slot]), q_RH.at[slot]
            _, some = xla_tiles.slopes(raw, dweight, keep, lse, delta, static.score)
        else:
            some, other = xla_tiles.weights_given(raw, keep, lse, static.score), dout_RH.at[slot]
        weight[...] = some.astype(weight.dtype)
        plgpu.commit_smem()
        return total + times(weight, other)

    start = gpu_blocks.zeros(*k_SH.shape)
    total = gpu_blocks.walk(
        first[j], end[j], lambda g, slot: fetch_rows(g, slot, rows_here.at[slot]), use, start
    )
    _put(total, k_SH, out_hbm.at[b, head, pl.ds(j * KEYS, KEYS)])


def _spread(ref, axis, shape):
    return lax.broadcast_in_dim(vector(ref, axis), shape, [axis])


def _rows(row_facts, q_hbm, dout_hbm, stats_hbm, at, q, dout, stats, head, b):
    """`fetch(i, slot, barrier)`: orders all that belongs to row block i."""

    def fetch(i, slot, barrier):
        sources = row_facts.at[b, i], *(x.at[b, head, i] for x in (q_hbm, dout_hbm, stats_hbm))
        for source, target in zip(sources, (at, q, dout, stats)):
            plgpu.copy_gmem_to_smem(source, target if slot is None else target.at[slot], barrier)

    return fetch


def _keys(key_facts, keys, values, at, k, v, head, b):
    """`fetch(j, slot, barrier)`: orders all that belongs to key block j."""

    def fetch(j, slot, barrier):
        sources = key_facts.at[b, j], *(x.at[b, head, pl.ds(j * KEYS, KEYS)] for x in (keys, values))
        for source, target in zip(sources, (at, k, v)):
            plgpu.copy_gmem_to_smem(source, target if slot is None else target.at[slot], barrier)

    return fetch


def _put(total, buffer, target):
    """Writes a sum through a buffer that is no longer read."""
    plgpu.commit_smem()
    buffer[...] = total.astype(buffer.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(buffer, target)
    plgpu.wait_smem_to_gmem(0)
