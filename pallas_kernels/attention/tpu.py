"""Attention on TPU: one Pallas kernel over (batch, head, query block, key block).

Which key blocks a query block needs comes from `streamed.Grid` and is prefetched as scalars: the index map
starts at the first of them and stops moving after the last, so blocks out of the window, in the future or of
other documents cost no copy and no product. Softmax streams over the key blocks in VMEM scratch.

The G query heads of a key/value head are rows of one product. The backward pass (`tpu_backward`) starts from
the log-sum-exp that this kernel returns.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import tpu_backward, xla, xla_tiles
from pallas_kernels.attention.tpu_blocks import (
    cost,
    exact,
    facts,
    fold_rows,
    grid_of,
    keep,
    reach,
    rows_by_keys,
    unfold_rows,
    within,
)


def refuses(ask) -> str | None:
    if ask.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{ask.dtype} is neither float32 nor bfloat16"
    if not ask.causal:
        return "only causal attention is written"
    return None


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
    interpret=False,
):
    """Returns out_BTNH and lse_BTN. `interpret`: True, or `pltpu.InterpretParams` to look for races."""
    static = xla.Static(window, causal, xla_tiles.Score(float(scale), softcap))
    places = xla.Places(q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    return _attention((static, interpret), q_BTNH, k_BSKH, v_BSKH, places)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how, q_BTNH, k_BSKH, v_BSKH, places):
    return _forward(how, q_BTNH, k_BSKH, v_BSKH, places)[0]


def _forward(how, q_BTNH, k_BSKH, v_BSKH, places):
    static, interpret = how
    out_BTNH, lse_BTN = forward(static, interpret, q_BTNH, k_BSKH, v_BSKH, places)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN)


def _backward(how, saved, cotangents):
    static, interpret = how
    return *tpu_backward.backward(static, interpret, saved, cotangents), None


_attention.defvjp(_forward, _backward)


def forward(static, interpret, q_BTNH, k_BSKH, v_BSKH, places):
    """Returns out_BTNH and lse_BTN."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    G = N // K
    grid = grid_of(static, places, T, S, G)
    rows, bk = grid.bq * G, grid.bk
    steps = reach(static, places, grid.bq, bk, grid.m)

    q_BKRH = fold_rows(grid, xla.by_group(q_BTNH, K))
    k_BKSH, v_BKSH = (grid.pad_keys(xla.by_head(x), 2) for x in (k_BSKH, v_BSKH))

    def query_block(*tail):
        return pl.BlockSpec((None, None, rows, *tail), lambda b, h, i, j, *_: (b, h, i, *(0 for _ in tail)))

    key_block = pl.BlockSpec((None, None, bk, H), lambda b, h, i, j, *n: (b, h, within(i, j, *n), 0))
    query_facts = pl.BlockSpec((None, rows, 2), lambda b, h, i, j, *_: (b, i, 0))
    key_facts = pl.BlockSpec((None, 2, bk), lambda b, h, i, j, *n: (b, 0, within(i, j, *n)))
    out_BKRH, lse_BKR1 = pl.pallas_call(
        functools.partial(_kernel, static=static, steps=steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, grid.n, steps),
            in_specs=[query_facts, key_facts, query_block(H), key_block, key_block],
            out_specs=[query_block(H), query_block(1)],
            scratch_shapes=[pltpu.VMEM((rows, H), jnp.float32)] + [pltpu.VMEM((rows, 1), jnp.float32)] * 2,
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_BKRH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct((*q_BKRH.shape[:3], 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=cost(4, B * N * grid.n * grid.bq * steps * bk, H, q_BKRH, k_BKSH, v_BKSH, q_BKRH),
        interpret=interpret,
    )(grid.first_n, grid.end_n, *facts(grid, B, G), q_BKRH, k_BKSH, v_BKSH)
    return (
        xla.by_query(unfold_rows(grid, out_BKRH)),
        xla.by_query(unfold_rows(grid, lse_BKR1)[..., 0]),
    )


def _kernel(
    first_n,
    end_n,
    at_R2,
    at_2S,
    q_RH,
    k_SH,
    v_SH,
    out_RH,
    lse_R1,
    part_RH,
    top_R1,
    total_R1,
    *,
    static,
    steps,
):
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        part_RH[...] = jnp.zeros_like(part_RH)
        top_R1[...] = jnp.full_like(top_R1, -jnp.inf)
        total_R1[...] = jnp.zeros_like(total_R1)

    @pl.when(first_n[i] + j < end_n[i])
    def _():
        raw_RS = rows_by_keys(q_RH[...], k_SH[...])
        weight_RS, top, total = xla_tiles.weigh(raw_RS, keep(at_R2[...], at_2S[...], static), static.score)
        more_RH = jnp.dot(
            weight_RS.astype(v_SH.dtype), v_SH[...], precision=exact(v_SH), preferred_element_type=jnp.float32
        )
        before = xla_tiles.Partial(part_RH[...], top_R1[...], total_R1[...])
        part_RH[...], top_R1[...], total_R1[...] = xla_tiles.join(
            before, xla_tiles.Partial(more_RH, top, total)
        )

    @pl.when(j == steps - 1)
    def _():
        out, lse = xla_tiles.finish(xla_tiles.Partial(part_RH[...], top_R1[...], total_R1[...]))
        out_RH[...] = out.astype(out_RH.dtype)
        lse_R1[...] = lse[:, None]
