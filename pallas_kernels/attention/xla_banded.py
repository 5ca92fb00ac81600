"""The plan for a window at plain positions: all blocks of queries at once, each against its range of keys.

Queries are split into n blocks. The window of a block's first query reaches `back` blocks back, so block i
sees only key blocks i .. i + back (keys are shifted so that block i + back holds the positions of query
block i). The ranges overlap, so keys are copied back + 1 times. The copies are cheap while blocks are about
half a window, and one batched product computes all scores.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.operands import StaticOptions, TokenPositions
from pallas_kernels.masks import visible


def block_size(window: int) -> int:
    """Queries or keys per block."""
    return min(256, max(16, window // 2))


def blocks_back(window: int) -> int:
    """Blocks before a query block that its window reaches."""
    return -(-(window - 1) // block_size(window))


def scores_per_head(T: int, window: int) -> int:
    """Number of live scores per query head."""
    block = block_size(window)
    return -(-T // block) * block * (blocks_back(window) + 1) * block


def forward(
    q_BKTGH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    positions: TokenPositions,
    static: StaticOptions,
    acc_dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BKTGH and lse_BKTG."""
    T, S, window = q_BKTGH.shape[2], k_BKSH.shape[2], static.window
    assert window is not None  # by the choice of this plan
    k, v = (_key_ranges(x, 2, T, S, window) for x in (k_BKSH, v_BKSH))
    mask = _mask(positions, T, S, window)
    out, lse = xla_tiles.finalize(
        xla_tiles.forward(_blocks(q_BKTGH, 2, window), k, v, mask, static.score, acc_dtype)
    )
    return _unblock(out, T), _unblock(lse, T)


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
    T, S, window = q_BKTGH.shape[2], k_BKSH.shape[2], static.window
    assert window is not None  # by the choice of this plan
    k, v = (_key_ranges(x, 2, T, S, window) for x in (k_BKSH, v_BKSH))
    q, dout, lse, delta = (_blocks(x, 2, window) for x in (q_BKTGH, dout_BKTGH, lse_BKTG, delta_BKTG))
    mask = _mask(positions, T, S, window)
    dq, dk, dv = xla_tiles.backward(q, k, v, mask, dout, lse, delta, static.score, acc_dtype)
    return _unblock(dq, T), _sum_key_ranges(dk, T, S, window), _sum_key_ranges(dv, T, S, window)


def _mask(positions: TokenPositions, T: int, S: int, window: int) -> jax.Array:
    """Which keys of its range each query sees: bool [B or 1, 1, n, block, (back + 1) block]."""
    block, back = block_size(window), blocks_back(window)
    n = -(-T // block)
    row_T, column_S = jnp.arange(block), jnp.arange((back + 1) * block)
    key_nS = jnp.arange(n)[:, None] * block + column_S[None] - _lead(T, S, window)
    near_TS = visible(back * block + row_T[:, None] - column_S[None], window)
    mask = (near_TS[None] & ((key_nS >= 0) & (key_nS < S))[:, None])[None, None]
    if positions.segment_q_BT is not None and positions.segment_k_BS is not None:
        q_BnT = _blocks(positions.segment_q_BT, 1, window)
        k_BnS = _key_ranges(positions.segment_k_BS, 1, T, S, window)
        mask = mask & (q_BnT[..., :, None] == k_BnS[..., None, :])[:, None]
    return mask


def _lead(T: int, S: int, window: int) -> int:
    """Number of empty keys before key 0. If negative, the first keys, which no query sees, are cut off."""
    return blocks_back(window) * block_size(window) - (S - T)


def _blocks(x: jax.Array, axis: int, window: int) -> jax.Array:
    """Splits `axis` of length T into [n, block], padded with zeros."""
    block = block_size(window)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % block)
    x = jnp.pad(x, pad)
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def _unblock(x_BKnTetc: jax.Array, T: int) -> jax.Array:
    B, K, n, block, *etc = x_BKnTetc.shape
    return x_BKnTetc.reshape(B, K, n * block, *etc)[:, :, :T]


def _key_ranges(x: jax.Array, axis: int, T: int, S: int, window: int) -> jax.Array:
    """Splits `axis` of length S into n overlapping ranges: [n, (back + 1) block]."""
    lead, back = _lead(T, S, window), blocks_back(window)
    x = lax.slice_in_dim(x, max(-lead, 0), None, axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (max(lead, 0), 0)
    x = _blocks(jnp.pad(x, pad), axis, window)
    n = x.shape[axis] - back
    parts = [lax.slice_in_dim(x, j, j + n, axis=axis) for j in range(back + 1)]
    return jnp.concatenate(parts, axis=axis + 1)


def _sum_key_ranges(d_BKnSH: jax.Array, T: int, S: int, window: int) -> jax.Array:
    """The transpose of `_key_ranges`: sums the gradients of each key over the ranges that hold it."""
    B, K, n, _, H = d_BKnSH.shape
    block, back, lead = block_size(window), blocks_back(window), _lead(T, S, window)
    d = d_BKnSH.reshape(B, K, n, back + 1, block, H)
    whole = jnp.zeros((B, K, n + back, block, H), d.dtype)
    for j in range(back + 1):
        whole += jnp.pad(d[:, :, :, j], ((0, 0), (0, 0), (j, back - j), (0, 0), (0, 0)))
    whole = whole.reshape(B, K, (n + back) * block, H)[:, :, max(lead, 0) :]
    whole = jnp.pad(whole, ((0, 0), (0, 0), (max(-lead, 0), 0), (0, 0)))
    return whole[:, :, :S]
