"""Attention on Hopper: two warpgroups with 64 rows each share one stream of key and value blocks.

Rows are queries x G of one key/value head. Blocks of keys arrive by TMA in `STAGES` buffers; the first
warpgroup orders them, waiting until the second is done with the buffer it is about to fill. Only blocks that
some row of the pair can see are ordered. Both products are wgmma; softmax streams over the blocks.

This kernel is for plain positions and one document, where ranges and masks are arithmetic; others go to
`gpu_placed`. The backward pass (`gpu_backward`) starts from the log-sum-exp that either returns.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gpu_backward, gpu_positions, xla, xla_tiles
from pallas_kernels.attention.gpu_blocks import (
    KEYS,
    ROWS,
    STAGES,
    TILED,
    finish,
    nothing,
    refuses_shape,
    tile,
)
from pallas_kernels.masks import oldest, visible

WARPGROUPS = 2


def refuses(ask) -> str | None:
    if not ask.causal:
        return "only causal attention is written"
    return refuses_shape(ask.dtype, ask.shape_BTNH[3], ask.shape_BTNH[2] // ask.shape_BSKH[2])


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    window,
    causal,
    scale,
    softcap,
    q_pos_BT,
    k_pos_BS,
    segment_q_BT,
    segment_k_BS,
):
    """Returns out_BTNH and lse_BTN."""
    static = xla.Static(window, causal, xla_tiles.Score(float(scale), softcap))
    places = xla.Places(q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    return _attention(static, q_BTNH, k_BSKH, v_BSKH, places)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q_BTNH, k_BSKH, v_BSKH, places):
    return _forward(static, q_BTNH, k_BSKH, v_BSKH, places)[0]


def _forward(static, q_BTNH, k_BSKH, v_BSKH, places):
    plain = all(x is None for x in places)
    result = (
        forward(static, q_BTNH, k_BSKH, v_BSKH)
        if plain
        else gpu_positions.forward(static, q_BTNH, k_BSKH, v_BSKH, places)
    )
    return result, (q_BTNH, k_BSKH, v_BSKH, places, *result)


def _backward(static, saved, cotangents):
    return *gpu_backward.backward(static, saved, cotangents), None


_attention.defvjp(_forward, _backward)


def forward(static, q_BTNH, k_BSKH, v_BSKH):
    """Returns out_BTNH and lse_BTN."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    G, dtype = N // K, q_BTNH.dtype
    bq = ROWS // G
    n = -(-T // (bq * WARPGROUPS))
    # [B, K, n, warpgroup, ROWS, H]: bq queries of G heads, then rows that nobody asked for.
    q = jnp.pad(xla.by_group(q_BTNH, K), ((0, 0), (0, 0), (0, n * WARPGROUPS * bq - T), (0, 0), (0, 0)))
    q = q.reshape(B, K, n, WARPGROUPS, bq * G, H)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, 0), (0, ROWS - bq * G), (0, 0)))
    pad = ((0, 0), (0, 0), (0, -S % KEYS), (0, 0))
    k_BKSH, v_BKSH = (jnp.pad(xla.by_head(x), pad) for x in (k_BSKH, v_BSKH))

    out, lse = plgpu.kernel(
        functools.partial(_kernel, T=T, S=S, G=G, bq=bq, static=static),
        out_type=[jax.ShapeDtypeStruct(q.shape, dtype), jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)],
        scratch_types={
            "q_wRH": plgpu.SMEM((WARPGROUPS, ROWS, H), dtype, transforms=TILED),
            "k_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
            "v_xSH": plgpu.SMEM((STAGES, KEYS, H), dtype, transforms=TILED),
            "p_wRS": plgpu.SMEM((WARPGROUPS, ROWS, KEYS), dtype, transforms=TILED),
            "lse_wR": plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            "q_here": plgpu.Barrier(num_barriers=WARPGROUPS),
            "k_here": plgpu.Barrier(num_barriers=STAGES),
            "v_here": plgpu.Barrier(num_barriers=STAGES),
            "used": plgpu.Barrier(num_barriers=STAGES),
        },
        grid=(n, K, B),
        grid_names=("block", "head", "row"),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
    )(q, k_BKSH, v_BKSH)

    def by_query(x):
        x = x[:, :, :, :, : bq * G].reshape(B, K, n * WARPGROUPS * bq, G, *x.shape[5:])
        return xla.by_query(x[:, :, :T])

    return by_query(out), by_query(lse)


def _kernel(
    q_hbm, keys, values, out_hbm, lse_hbm,
    *, T, S, G, bq, static, q_wRH, k_xSH, v_xSH, p_wRS, lse_wR, q_here, k_here, v_here, used,
):  # fmt: skip
    i, head, b, me = (lax.axis_index(name) for name in ("block", "head", "row", "warpgroup"))
    # Ranges are those of the pair, so that both walk the same blocks and keep the same barriers.
    pair = S - T + i * WARPGROUPS * bq
    lo = jnp.maximum(oldest(pair, static.window), 0) // KEYS
    hi = jnp.minimum(pair + WARPGROUPS * bq - 1, S - 1) // KEYS + 1
    position = pair + me * bq

    def fetch(g):
        slot = lax.rem(g - lo, STAGES)
        block = pl.ds(g * KEYS, KEYS)
        plgpu.copy_gmem_to_smem(keys.at[b, head, block], k_xSH.at[slot], k_here.at[slot])
        plgpu.copy_gmem_to_smem(values.at[b, head, block], v_xSH.at[slot], v_here.at[slot])

    @pl.when(me == 0)
    def _():
        for ahead in range(STAGES - 1):
            pl.when(lo + ahead < hi)(functools.partial(fetch, lo + ahead))

    plgpu.copy_gmem_to_smem(q_hbm.at[b, head, i, me], q_wRH.at[me], q_here.at[me])
    plgpu.barrier_wait(q_here.at[me])

    def step(g, carry):
        slot = lax.rem(g - lo, STAGES)

        @pl.when((me == 0) & (g + STAGES - 1 < hi))
        def _():
            # The buffer was used in the step before, by this warpgroup and by the other, which says when.
            pl.when(g > lo)(lambda: plgpu.barrier_wait(used.at[lax.rem(g - lo - 1, STAGES)]))
            fetch(g + STAGES - 1)

        plgpu.barrier_wait(k_here.at[slot])

        def keep(row_RS, key_RS):
            query_RS = row_RS // G if G > 1 else row_RS
            key_RS = key_RS + g * KEYS
            return visible(position + query_RS - key_RS, static.window) & (key_RS < S)

        def values_here():
            plgpu.barrier_wait(v_here.at[slot])

        operands = q_wRH.at[me], k_xSH.at[slot], v_xSH.at[slot], p_wRS.at[me]
        carry = tile(*operands, keep, carry, static.score, values_here)
        pl.when((me == 1) & (g + STAGES < hi))(lambda: plgpu.barrier_arrive(used.at[slot]))
        return carry

    out, lse_wR[me] = finish(lax.fori_loop(lo, hi, step, nothing(q_wRH.shape[2])))
    q_wRH[me] = out.astype(q_wRH.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_wRH.at[me], out_hbm.at[b, head, i, me])
    plgpu.copy_smem_to_gmem(lse_wR.at[me], lse_hbm.at[b, head, i, me])
    plgpu.wait_smem_to_gmem(0)
