"""The plan for short inputs: a few blocks of queries, each against every key up to its last query.

Where positions are given, or attention is not causal, there is one block against all keys: no key is known
to be invisible before the program runs.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.operands import StaticOptions, TokenPositions
from pallas_kernels.masks import visible

# Fewer rows make inefficient matrix products; more blocks compile slowly.
MIN_BLOCK, MAX_BLOCKS = 64, 8


def block_size(T: int) -> int:
    """Queries per block."""
    return max(MIN_BLOCK, -(-T // MAX_BLOCKS))


def scores_per_head(T: int, S: int) -> int:
    """Number of live scores per query head."""
    return min(block_size(T), T) * S


def forward(
    q_BKTGH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    positions: TokenPositions,
    static: StaticOptions,
    acc_dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BKTGH and lse_BKTG."""
    results = []
    for rows, keys, mask_B1TS in _blocks(q_BKTGH, k_BKSH, positions, static):
        part = xla_tiles.forward(
            q_BKTGH[:, :, rows], k_BKSH[:, :, keys], v_BKSH[:, :, keys], mask_B1TS, static.score, acc_dtype
        )
        results.append(xla_tiles.finalize(part))
    outs, lses = zip(*results, strict=True)
    return jnp.concatenate(outs, axis=2), jnp.concatenate(lses, axis=2)


def backward(
    q_BKTGH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    positions: TokenPositions,
    static: StaticOptions,
    acc_dtype: DTypeLike,
    dout_BKTGH: jax.Array,
    lse_BKTG: jax.Array,
    delta_BKTG: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns dq_BKTGH, dk_BKSH, dv_BKSH."""
    S = k_BKSH.shape[2]
    dqs: list[jax.Array] = []
    dk, dv = jnp.zeros(k_BKSH.shape, acc_dtype), jnp.zeros(v_BKSH.shape, acc_dtype)
    for rows, keys, mask_B1TS in _blocks(q_BKTGH, k_BKSH, positions, static):
        q, dout, lse, delta = (x[:, :, rows] for x in (q_BKTGH, dout_BKTGH, lse_BKTG, delta_BKTG))
        k, v = k_BKSH[:, :, keys], v_BKSH[:, :, keys]
        dq, dk_part, dv_part = xla_tiles.backward(
            q, k, v, mask_B1TS, dout, lse, delta, static.score, acc_dtype
        )
        tail = ((0, 0), (0, 0), (0, S - keys.stop), (0, 0))
        dk, dv = dk + jnp.pad(dk_part, tail), dv + jnp.pad(dv_part, tail)
        dqs.append(dq)
    return jnp.concatenate(dqs, axis=2), dk, dv


def _blocks(
    q_BKTGH: jax.Array, k_BKSH: jax.Array, positions: TokenPositions, static: StaticOptions
) -> Iterator[tuple[slice, slice, jax.Array]]:
    """For each block: its slice of queries, its slice of keys, and the mask [B or 1, 1, queries, keys]."""
    T, S = q_BKTGH.shape[2], k_BKSH.shape[2]
    plain = positions.q_pos_BT is None and static.causal
    block = block_size(T) if plain else T
    for start in range(0, T, block):
        rows = slice(start, min(start + block, T))
        keys = slice(0, S - T + rows.stop if plain else S)
        yield rows, keys, mask(positions, static, T, S, rows, keys)[:, None]


def mask(
    positions: TokenPositions, static: StaticOptions, T: int, S: int, rows: slice, keys: slice
) -> jax.Array:
    """Which of the slice `keys` each query of the slice `rows` sees: bool [B or 1, rows, keys]."""
    q_pos_BT, k_pos_BS = positions.token_positions(T, S)
    q_pos_BT1, k_pos_B1S = q_pos_BT[:, rows, None], k_pos_BS[:, None, keys]
    seen_BTS = jnp.broadcast_to(k_pos_B1S >= 0, (len(q_pos_BT1), q_pos_BT1.shape[1], k_pos_B1S.shape[2]))
    if static.causal:
        seen_BTS = seen_BTS & visible(q_pos_BT1 - k_pos_B1S, static.window)
    if positions.segment_q_BT is not None and positions.segment_k_BS is not None:
        seen_BTS = seen_BTS & (positions.segment_q_BT[:, rows, None] == positions.segment_k_BS[:, None, keys])
    return seen_BTS
