"""Attention's gradients on Hopper: three kernels that recompute a tile's weights from the log-sum-exp.

`_dq` loops, for each row block, over the key blocks that it sees; `_dkv`, for each key block, over the row
blocks that see it. `_dkv` runs once for the gradient of the values and once for that of the keys: at heads
of 128 both sums and the result of a product exceed the registers of a warpgroup. Weights pass through shared
memory, as in the forward kernel.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2, with its one loop split in three.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from pallas_kernels.attention import gpu_blocks, xla_streamed, xla_tiles
from pallas_kernels.attention.gpu_blocks import (
    KEYS,
    ROWS,
    STAGES,
    TILED,
    load_vector,
    matmul,
    matmul_transposed,
)
from pallas_kernels.attention.operands import Residuals, StaticOptions
from pallas_kernels.typing import Ref


def backward(
    static: StaticOptions, saved: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients dq_BTNH, dk_BSKH, dv_BSKH."""
    q_BTNH, k_BSKH, v_BSKH, positions, out_BTNH, lse_BTN = saved
    dout_BTNH, dlse_BTN = cotangents
    (B, T, N, _), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    acc_dtype, dtype = jnp.float32, q_BTNH.dtype
    delta_BTN = jnp.sum(out_BTNH.astype(acc_dtype) * dout_BTNH.astype(acc_dtype), axis=-1) - dlse_BTN
    folded = gpu_blocks.FoldedBlocks(static, positions, B, T, S, N // K)
    q, dout = (folded.rows(x.astype(dtype), K) for x in (q_BTNH, dout_BTNH))
    # Per row: log-sum-exp and delta. The mask covers rows that see nothing, so their log-sum-exp may be 0.
    stats = jnp.stack([folded.rows(x, K) for x in (xla_tiles.finite(lse_BTN), delta_BTN)], axis=3)
    keys, values = folded.keys(k_BSKH), folded.keys(v_BSKH)
    meta = folded.row_meta_Bn2R, folded.key_meta_Bm2S

    grid = folded.grid
    call = functools.partial(_call, static=static, dtype=dtype)
    dq = call(_dq, (grid.first_n, grid.end_n), *meta, q, dout, stats, keys, values, out=q)
    seen_by = xla_streamed.block_ranges(grid.block_mask_nm.T)
    dk, dv = (
        call(functools.partial(_dkv, of_keys=of_keys), seen_by, *meta, q, dout, stats, keys, values, out=keys)
        for of_keys in (True, False)
    )
    return folded.queries(dq), jnp.swapaxes(dk, 1, 2)[:, :S], jnp.swapaxes(dv, 1, 2)[:, :S]


def _call(
    kernel: Callable[..., None],
    ranges: tuple[jax.Array, jax.Array],
    *arrays: jax.Array,
    out: jax.Array,
    static: StaticOptions,
    dtype: DTypeLike,
) -> Any:
    """Calls one of the two kernels. It holds a block of rows or keys and loops over blocks of the other."""
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
            "row_meta_2R": plgpu.SMEM((*held, 2, ROWS), jnp.int32),
            "k_SH": plgpu.SMEM((*passing, KEYS, H), dtype, transforms=TILED),
            "v_SH": plgpu.SMEM((*passing, KEYS, H), dtype, transforms=TILED),
            "key_meta_2S": plgpu.SMEM((*passing, 2, KEYS), jnp.int32),
            "weight": plgpu.SMEM((ROWS, KEYS), dtype, transforms=TILED),
            "rows_ready": plgpu.Barrier(num_arrivals=row_arrivals, num_barriers=STAGES),
            "keys_ready": plgpu.Barrier(num_arrivals=key_arrivals, num_barriers=STAGES),
        },
        grid=(blocks, K, B),
        grid_names=("block", "head", "row"),
    )(*ranges, *arrays)


def _dq(
    first: Ref,
    end: Ref,
    row_meta: Ref,
    key_meta: Ref,
    q_hbm: Ref,
    dout_hbm: Ref,
    stats_hbm: Ref,
    keys: Ref,
    values: Ref,
    dq_hbm: Ref,
    *,
    static: StaticOptions,
    q_RH: Ref,
    dout_RH: Ref,
    stats_2R: Ref,
    row_meta_2R: Ref,
    k_SH: Ref,
    v_SH: Ref,
    key_meta_2S: Ref,
    weight: Ref,
    rows_ready: Ref,
    keys_ready: Ref,
) -> None:
    i, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))
    fetch_rows = _row_fetcher(
        row_meta, q_hbm, dout_hbm, stats_hbm, row_meta_2R, q_RH, dout_RH, stats_2R, head, b
    )
    fetch_keys = _key_fetcher(key_meta, keys, values, key_meta_2S, k_SH, v_SH, head, b)
    fetch_rows(i, None, rows_ready.at[0])
    plgpu.barrier_wait(rows_ready.at[0])

    def use(g: jax.Array, slot: jax.Array, dq: jax.Array) -> jax.Array:
        plgpu.barrier_wait(keys_ready.at[slot])
        raw, dweight = matmul_transposed(q_RH, k_SH.at[slot]), matmul_transposed(dout_RH, v_SH.at[slot])
        lse, delta = (_spread(stats_2R.at[x], 0, raw.shape) for x in (0, 1))
        mask = gpu_blocks.mask(row_meta_2R, key_meta_2S.at[slot], static)
        _, dscore = xla_tiles.score_gradients(raw, dweight, mask, lse, delta, static.score)
        weight[...] = dscore.astype(weight.dtype)
        plgpu.commit_smem()
        return dq + matmul(weight, k_SH.at[slot])

    start = gpu_blocks.zeros(*q_RH.shape)
    dq = gpu_blocks.pipelined_loop(
        first[i], end[i], lambda g, slot: fetch_keys(g, slot, keys_ready.at[slot]), use, start
    )
    _write_out(dq, q_RH, dq_hbm.at[b, head, i])


def _dkv(
    first: Ref,
    end: Ref,
    row_meta: Ref,
    key_meta: Ref,
    q_hbm: Ref,
    dout_hbm: Ref,
    stats_hbm: Ref,
    keys: Ref,
    values: Ref,
    out_hbm: Ref,
    *,
    static: StaticOptions,
    of_keys: bool,
    q_RH: Ref,
    dout_RH: Ref,
    stats_2R: Ref,
    row_meta_2R: Ref,
    k_SH: Ref,
    v_SH: Ref,
    key_meta_2S: Ref,
    weight: Ref,
    rows_ready: Ref,
    keys_ready: Ref,
) -> None:
    j, head, b = (lax.axis_index(name) for name in ("block", "head", "row"))
    fetch_rows = _row_fetcher(
        row_meta, q_hbm, dout_hbm, stats_hbm, row_meta_2R, q_RH, dout_RH, stats_2R, head, b
    )
    fetch_keys = _key_fetcher(key_meta, keys, values, key_meta_2S, k_SH, v_SH, head, b)
    fetch_keys(j, None, keys_ready.at[0])
    plgpu.barrier_wait(keys_ready.at[0])

    def use(g: jax.Array, slot: jax.Array, total: jax.Array) -> jax.Array:
        plgpu.barrier_wait(rows_ready.at[slot])
        raw = matmul_transposed(k_SH, q_RH.at[slot])
        lse, delta = (_spread(stats_2R.at[slot, x], 1, raw.shape) for x in (0, 1))
        mask = gpu_blocks.mask(row_meta_2R.at[slot], key_meta_2S, static, transposed=True)
        if of_keys:
            dweight, other = matmul_transposed(v_SH, dout_RH.at[slot]), q_RH.at[slot]
            _, factor = xla_tiles.score_gradients(raw, dweight, mask, lse, delta, static.score)
        else:
            factor, other = xla_tiles.weights_from_lse(raw, mask, lse, static.score), dout_RH.at[slot]
        weight[...] = factor.astype(weight.dtype)
        plgpu.commit_smem()
        return total + matmul(weight, other)

    start = gpu_blocks.zeros(*k_SH.shape)
    total = gpu_blocks.pipelined_loop(
        first[j], end[j], lambda g, slot: fetch_rows(g, slot, rows_ready.at[slot]), use, start
    )
    _write_out(total, k_SH, out_hbm.at[b, head, pl.ds(j * KEYS, KEYS)])


def _spread(ref: Ref, axis: int, shape: tuple[int, ...]) -> jax.Array:
    return lax.broadcast_in_dim(load_vector(ref, axis), shape, [axis])


type Fetch = Callable[[Any, Any, Ref], None]


def _row_fetcher(
    row_meta: Ref,
    q_hbm: Ref,
    dout_hbm: Ref,
    stats_hbm: Ref,
    meta: Ref,
    q: Ref,
    dout: Ref,
    stats: Ref,
    head: jax.Array,
    b: jax.Array,
) -> Fetch:
    """Returns `fetch(i, slot, barrier)`, which starts the copies of row block i."""

    def fetch(i: jax.Array, slot: jax.Array | None, barrier: Ref) -> None:
        sources = row_meta.at[b, i], *(x.at[b, head, i] for x in (q_hbm, dout_hbm, stats_hbm))
        for source, target in zip(sources, (meta, q, dout, stats)):
            plgpu.copy_gmem_to_smem(source, target if slot is None else target.at[slot], barrier)

    return fetch


def _key_fetcher(
    key_meta: Ref, keys: Ref, values: Ref, meta: Ref, k: Ref, v: Ref, head: jax.Array, b: jax.Array
) -> Fetch:
    """Returns `fetch(j, slot, barrier)`, which starts the copies of key block j."""

    def fetch(j: jax.Array, slot: jax.Array | None, barrier: Ref) -> None:
        sources = key_meta.at[b, j], *(x.at[b, head, pl.ds(j * KEYS, KEYS)] for x in (keys, values))
        for source, target in zip(sources, (meta, k, v)):
            plgpu.copy_gmem_to_smem(source, target if slot is None else target.at[slot], barrier)

    return fetch


def _write_out(total: jax.Array, buffer: Ref, target: Ref) -> None:
    """Writes a sum through a buffer that is no longer read."""
    plgpu.commit_smem()
    buffer[...] = total.astype(buffer.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(buffer, target)
    plgpu.wait_smem_to_gmem(0)
