"""Attention on TPU: one Pallas kernel over (batch, head, query block, key block).

`xla_streamed.BlockGrid` computes the range of key blocks of each query block, which is prefetched as
scalars. The index map starts at the first block of the range and stays at the last, so blocks out of the
window, in the future or of other documents cost no copy and no product. Softmax streams over the key blocks
in VMEM scratch.

The G query heads of a key/value head are rows of one product. The backward pass (`tpu_backward`) starts from
the log-sum-exp that this kernel returns.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import AttentionCall, operands, tpu_backward, xla_tiles
from pallas_kernels.attention.operands import Residuals, StaticOptions, TokenPositions
from pallas_kernels.attention.tpu_blocks import (
    block_index,
    cost_estimate,
    fold_rows,
    make_grid,
    mask,
    matmul_precision,
    matmul_transposed,
    max_blocks_in_view,
    token_meta,
    unfold_rows,
)
from pallas_kernels.typing import Interpret, Ref


def unsupported(call: AttentionCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if call.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{call.dtype} is neither float32 nor bfloat16"
    if not call.causal:
        return "only causal attention is implemented"
    return None


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
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and lse_BTN. `interpret`: True, or `pltpu.InterpretParams` to detect races."""
    static = operands.StaticOptions(window, causal, operands.ScoreTransform(float(scale), softcap))
    positions = operands.TokenPositions(q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    return _attention((static, interpret), q_BTNH, k_BSKH, v_BSKH, positions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    options: tuple[StaticOptions, Interpret],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions: TokenPositions,
) -> tuple[jax.Array, jax.Array]:
    return _forward(options, q_BTNH, k_BSKH, v_BSKH, positions)[0]


def _forward(
    options: tuple[StaticOptions, Interpret],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions: TokenPositions,
) -> tuple[tuple[jax.Array, jax.Array], Residuals]:
    static, interpret = options
    out_BTNH, lse_BTN = forward(static, interpret, q_BTNH, k_BSKH, v_BSKH, positions)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, positions, out_BTNH, lse_BTN)


def _backward(
    options: tuple[StaticOptions, Interpret], saved: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    static, interpret = options
    return *tpu_backward.backward(static, interpret, saved, cotangents), None


_attention.defvjp(_forward, _backward)


def forward(
    static: StaticOptions,
    interpret: Interpret,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    positions: TokenPositions,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and lse_BTN."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    G = N // K
    grid = make_grid(static, positions, T, S, G)
    rows, bk = grid.bq * G, grid.bk
    steps = max_blocks_in_view(static, positions, grid.bq, bk, grid.m)

    q_BKRH = fold_rows(grid, operands.by_group(q_BTNH, K))
    k_BKSH, v_BKSH = (grid.pad_keys(operands.by_head(x), 2) for x in (k_BSKH, v_BSKH))

    def query_block(*tail: int) -> Any:
        return pl.BlockSpec((None, None, rows, *tail), lambda b, h, i, j, *_: (b, h, i, *(0 for _ in tail)))

    key_block = pl.BlockSpec((None, None, bk, H), lambda b, h, i, j, *n: (b, h, block_index(i, j, *n), 0))
    query_meta = pl.BlockSpec((None, rows, 2), lambda b, h, i, j, *_: (b, i, 0))
    key_meta = pl.BlockSpec((None, 2, bk), lambda b, h, i, j, *n: (b, 0, block_index(i, j, *n)))
    out_BKRH, lse_BKR1 = pl.pallas_call(
        functools.partial(_kernel, static=static, steps=steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, grid.n, steps),
            in_specs=[query_meta, key_meta, query_block(H), key_block, key_block],
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
        cost_estimate=cost_estimate(
            4, B * N * grid.n * grid.bq * steps * bk, H, q_BKRH, k_BKSH, v_BKSH, q_BKRH
        ),
        interpret=interpret,
    )(grid.first_n, grid.end_n, *token_meta(grid, B, G), q_BKRH, k_BKSH, v_BKSH)
    return (
        operands.by_query(unfold_rows(grid, out_BKRH)),
        operands.by_query(unfold_rows(grid, lse_BKR1)[..., 0]),
    )


def _kernel(
    first_n: Ref,
    end_n: Ref,
    row_meta_R2: Ref,
    key_meta_2S: Ref,
    q_RH: Ref,
    k_SH: Ref,
    v_SH: Ref,
    out_RH: Ref,
    lse_R1: Ref,
    part_RH: Ref,
    top_R1: Ref,
    total_R1: Ref,
    *,
    static: StaticOptions,
    steps: int,
) -> None:
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        part_RH[...] = jnp.zeros_like(part_RH)
        top_R1[...] = jnp.full_like(top_R1, -jnp.inf)
        total_R1[...] = jnp.zeros_like(total_R1)

    @pl.when(first_n[i] + j < end_n[i])
    def _() -> None:
        raw_RS = matmul_transposed(q_RH[...], k_SH[...])
        weight_RS, top, total = xla_tiles.unnormalized_weights(
            raw_RS, mask(row_meta_R2[...], key_meta_2S[...], static), static.score
        )
        more_RH = jnp.dot(
            weight_RS.astype(v_SH.dtype),
            v_SH[...],
            precision=matmul_precision(v_SH),
            preferred_element_type=jnp.float32,
        )
        before = xla_tiles.PartialAttention(part_RH[...], top_R1[...], total_R1[...])
        part_RH[...], top_R1[...], total_R1[...] = xla_tiles.merge(
            before, xla_tiles.PartialAttention(more_RH, top, total)
        )

    @pl.when(j == steps - 1)
    def _() -> None:
        out, lse = xla_tiles.finalize(xla_tiles.PartialAttention(part_RH[...], top_R1[...], total_R1[...]))
        out_RH[...] = out.astype(out_RH.dtype)
        lse_R1[...] = lse[:, None]
