"""Attention on Hopper: two warpgroups of 64 rows each share one stream of key and value blocks.

Rows are queries x G of one key/value head. TMA copies blocks of keys into `STAGES` buffers. The first
warpgroup starts the copies, after the second has released the buffer to be filled. Only blocks that some row
of the pair can see are copied. Both products are wgmma; softmax streams over the blocks.

This kernel requires plain positions and one document, where ranges and masks are arithmetic; `gpu_positions`
takes the other calls. The backward pass (`gpu_backward`) starts from the log-sum-exp that either returns.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import AttentionCall, gpu_backward, gpu_positions, operands
from pallas_kernels.attention.gpu_blocks import (
    KEYS,
    ROWS,
    STAGES,
    TILED,
    Carry,
    add_key_block,
    empty_carry,
    finalize,
    unsupported_shape,
)
from pallas_kernels.attention.operands import Residuals, StaticOptions, TokenPositions
from pallas_kernels.masks import oldest, visible
from pallas_kernels.typing import Ref

WARPGROUPS = 2


def unsupported(call: AttentionCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if not call.causal:
        return "only causal attention is implemented"
    return unsupported_shape(call.dtype, call.shape_BTNH[3], call.shape_BTNH[2] // call.shape_BSKH[2])


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int | None,
    causal: bool,
    scale: float,
    softcap: float | None,
    q_pos_BT: jax.Array | None,
    k_pos_BS: jax.Array | None,
    segment_q_BT: jax.Array | None,
    segment_k_BS: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and lse_BTN."""
    static = operands.StaticOptions(window, causal, operands.ScoreTransform(float(scale), softcap))
    positions = operands.TokenPositions(q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    return _attention(static, q_BTNH, k_BSKH, v_BSKH, positions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    static: StaticOptions,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions: TokenPositions,
) -> tuple[jax.Array, jax.Array]:
    return _forward(static, q_BTNH, k_BSKH, v_BSKH, positions)[0]


def _forward(
    static: StaticOptions,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions: TokenPositions,
) -> tuple[tuple[jax.Array, jax.Array], Residuals]:
    if all(x is None for x in positions):
        out_BTNH, lse_BTN = forward(static, q_BTNH, k_BSKH, v_BSKH)
    else:
        out_BTNH, lse_BTN = gpu_positions.forward(static, q_BTNH, k_BSKH, v_BSKH, positions)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, positions, out_BTNH, lse_BTN)


def _backward(
    static: StaticOptions, saved: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    return *gpu_backward.backward(static, saved, cotangents), None


_attention.defvjp(_forward, _backward)


def forward(
    static: StaticOptions, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and lse_BTN."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    G, dtype = N // K, q_BTNH.dtype
    bq = ROWS // G
    n = -(-T // (bq * WARPGROUPS))
    # [B, K, n, warpgroup, ROWS, H]: bq queries of G heads, then padding.
    q = jnp.pad(operands.by_group(q_BTNH, K), ((0, 0), (0, 0), (0, n * WARPGROUPS * bq - T), (0, 0), (0, 0)))
    q = q.reshape(B, K, n, WARPGROUPS, bq * G, H)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, 0), (0, ROWS - bq * G), (0, 0)))
    pad = ((0, 0), (0, 0), (0, -S % KEYS), (0, 0))
    k_BKSH, v_BKSH = (jnp.pad(operands.by_head(x), pad) for x in (k_BSKH, v_BSKH))

    out, lse = plgpu.kernel(
        functools.partial(_kernel, T=T, S=S, G=G, bq=bq, static=static),
        out_type=[jax.ShapeDtypeStruct(q.shape, dtype), jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)],
        scratch_types={
            "q_wRH": plgpu.SMEM((WARPGROUPS, ROWS, H), dtype, transforms=TILED),
            "k_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
            "v_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
            "p_wRS": plgpu.SMEM((WARPGROUPS, ROWS, KEYS), dtype, transforms=TILED),
            "lse_wR": plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            "q_ready": plgpu.Barrier(num_barriers=WARPGROUPS),
            "k_ready": plgpu.Barrier(num_barriers=STAGES),
            "v_ready": plgpu.Barrier(num_barriers=STAGES),
            "buffer_free": plgpu.Barrier(num_barriers=STAGES),
        },
        grid=(n, K, B),
        grid_names=("block", "head", "row"),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
    )(q, k_BKSH, v_BKSH)

    def by_query(x: jax.Array) -> jax.Array:
        x = x[:, :, :, :, : bq * G].reshape(B, K, n * WARPGROUPS * bq, G, *x.shape[5:])
        return operands.by_query(x[:, :, :T])

    return by_query(out), by_query(lse)


def _kernel(
    q_hbm: Ref,
    keys: Ref,
    values: Ref,
    out_hbm: Ref,
    lse_hbm: Ref,
    *,
    T: int,
    S: int,
    G: int,
    bq: int,
    static: StaticOptions,
    q_wRH: Ref,
    k_xSH: Ref,
    v_xSH: Ref,
    p_wRS: Ref,
    lse_wR: Ref,
    q_ready: Ref,
    k_ready: Ref,
    v_ready: Ref,
    buffer_free: Ref,
) -> None:
    i, head, b, warpgroup = (lax.axis_index(name) for name in ("block", "head", "row", "warpgroup"))
    # The range is that of the pair, so that both loop over the same blocks and barriers.
    pair = S - T + i * WARPGROUPS * bq
    lo = jnp.maximum(oldest(pair, static.window), 0) // KEYS
    hi = jnp.minimum(pair + WARPGROUPS * bq - 1, S - 1) // KEYS + 1
    position = pair + warpgroup * bq

    def fetch(g: jax.Array) -> None:
        """Starts the copies of key block g."""
        slot = lax.rem(g - lo, STAGES)
        block = pl.ds(g * KEYS, KEYS)
        plgpu.copy_gmem_to_smem(keys.at[b, head, block], k_xSH.at[slot], k_ready.at[slot])
        plgpu.copy_gmem_to_smem(values.at[b, head, block], v_xSH.at[slot], v_ready.at[slot])

    @pl.when(warpgroup == 0)
    def _() -> None:
        for ahead in range(STAGES - 1):
            pl.when(lo + ahead < hi)(functools.partial(fetch, lo + ahead))

    plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i, warpgroup], q_wRH.at[warpgroup], q_ready.at[warpgroup])
    plgpu.barrier_wait(q_ready.at[warpgroup])

    def step(g: jax.Array, carry: Carry) -> Carry:
        slot = lax.rem(g - lo, STAGES)

        @pl.when((warpgroup == 0) & (g + STAGES - 1 < hi))
        def _() -> None:
            # Both warpgroups read this buffer in the step before; the other one signals when it is done.
            pl.when(g > lo)(lambda: plgpu.barrier_wait(buffer_free.at[lax.rem(g - lo - 1, STAGES)]))
            fetch(g + STAGES - 1)

        plgpu.barrier_wait(k_ready.at[slot])

        def mask(row_RS: jax.Array, key_RS: jax.Array) -> jax.Array:
            query_RS = row_RS // G if G > 1 else row_RS
            key_RS = key_RS + g * KEYS
            return visible(position + query_RS - key_RS, static.window) & (key_RS < S)

        def wait_for_values() -> None:
            plgpu.barrier_wait(v_ready.at[slot])

        buffers = q_wRH.at[warpgroup], k_xSH.at[slot], v_xSH.at[slot], p_wRS.at[warpgroup]
        carry = add_key_block(*buffers, mask, carry, static.score, wait_for_values)
        pl.when((warpgroup == 1) & (g + STAGES < hi))(lambda: plgpu.barrier_arrive(buffer_free.at[slot]))
        return carry

    out, lse_wR[warpgroup] = finalize(lax.fori_loop(lo, hi, step, empty_carry(q_wRH.shape[2])))
    q_wRH[warpgroup] = out.astype(q_wRH.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_wRH.at[warpgroup], out_hbm.at[b, head, i, warpgroup])
    plgpu.copy_smem_to_gmem(lse_wR.at[warpgroup], lse_hbm.at[b, head, i, warpgroup])
    plgpu.wait_smem_to_gmem(0)
