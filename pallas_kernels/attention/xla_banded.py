"""The plan for a window at plain positions: every block of queries at once, against its own stretch of keys.

Queries are cut into n blocks. With `back` blocks reaching a window further than a block's first query, block
i sees nothing outside key blocks i .. i + back (keys are shifted so that block i + back holds the positions
of query block i). Stretches overlap, so keys are copied back + 1 times: cheap while blocks are about half a
window, and one batched product does the rest.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import xla_tiles
from pallas_kernels.masks import visible


def block_of(window: int) -> int:
    return min(256, max(16, window // 2))


def back_of(window: int) -> int:
    return -(-(window - 1) // block_of(window))


def pairs(T: int, window: int) -> int:
    """Scores alive at once, per query head."""
    block = block_of(window)
    return -(-T // block) * block * (back_of(window) + 1) * block


def forward(q_BKTGH, k_BKSH, v_BKSH, places, static, wide):
    """Returns out_BKTGH and lse_BKTG."""
    T, S, window = q_BKTGH.shape[2], k_BKSH.shape[2], static.window
    k, v = (_stretches(x, 2, T, S, window) for x in (k_BKSH, v_BKSH))
    keep = _keep(places, T, S, window)
    out, lse = xla_tiles.finish(
        xla_tiles.forward(_blocks(q_BKTGH, 2, window), k, v, keep, static.score, wide)
    )
    return _unblock(out, T), _unblock(lse, T)


def backward(q_BKTGH, k_BKSH, v_BKSH, places, static, wide, dout_BKTGH, lse_BKTG, delta_BKTG):
    """Returns dq_BKTGH, dk_BKSH, dv_BKSH."""
    T, S, window = q_BKTGH.shape[2], k_BKSH.shape[2], static.window
    k, v = (_stretches(x, 2, T, S, window) for x in (k_BKSH, v_BKSH))
    q, dout, lse, delta = (_blocks(x, 2, window) for x in (q_BKTGH, dout_BKTGH, lse_BKTG, delta_BKTG))
    keep = _keep(places, T, S, window)
    dq, dk, dv = xla_tiles.backward(q, k, v, keep, dout, lse, delta, static.score, wide)
    return _unblock(dq, T), _unstretch(dk, T, S, window), _unstretch(dv, T, S, window)


def _keep(places, T, S, window):
    """Which keys of its stretch each query sees: bool [B or 1, 1, n, block, (back + 1) block]."""
    block, back = block_of(window), back_of(window)
    n = -(-T // block)
    row_T, column_S = jnp.arange(block), jnp.arange((back + 1) * block)
    key_nS = jnp.arange(n)[:, None] * block + column_S[None] - _lead(T, S, window)
    near_TS = visible(back * block + row_T[:, None] - column_S[None], window)
    keep = (near_TS[None] & ((key_nS >= 0) & (key_nS < S))[:, None])[None, None]
    if places.segment_q_BT is not None:
        q_BnT = _blocks(places.segment_q_BT, 1, window)
        k_BnS = _stretches(places.segment_k_BS, 1, T, S, window)
        keep = keep & (q_BnT[..., :, None] == k_BnS[..., None, :])[:, None]
    return keep


def _lead(T, S, window):
    """Empty keys put before key 0; if negative, first keys that no query sees are cut."""
    return back_of(window) * block_of(window) - (S - T)


def _blocks(x, axis, window):
    """Cuts `axis` of length T into [n, block], zeros at the end."""
    block = block_of(window)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % block)
    x = jnp.pad(x, pad)
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def _unblock(x_BKnTetc, T):
    B, K, n, block, *etc = x_BKnTetc.shape
    return x_BKnTetc.reshape(B, K, n * block, *etc)[:, :, :T]


def _stretches(x, axis, T, S, window):
    """Cuts `axis` of length S into n overlapping stretches: [n, (back + 1) block]."""
    lead, back = _lead(T, S, window), back_of(window)
    x = lax.slice_in_dim(x, max(-lead, 0), None, axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (max(lead, 0), 0)
    x = _blocks(jnp.pad(x, pad), axis, window)
    n = x.shape[axis] - back
    parts = [lax.slice_in_dim(x, j, j + n, axis=axis) for j in range(back + 1)]
    return jnp.concatenate(parts, axis=axis + 1)


def _unstretch(d_BKnSH, T, S, window):
    """The transpose of `_stretches`: sums what each key got in the stretches it lay in."""
    B, K, n, _, H = d_BKnSH.shape
    block, back, lead = block_of(window), back_of(window), _lead(T, S, window)
    d = d_BKnSH.reshape(B, K, n, back + 1, block, H)
    whole = jnp.zeros((B, K, n + back, block, H), d.dtype)
    for j in range(back + 1):
        whole += jnp.pad(d[:, :, :, j], ((0, 0), (0, 0), (j, back - j), (0, 0), (0, 0)))
    whole = whole.reshape(B, K, (n + back) * block, H)[:, :, max(lead, 0) :]
    whole = jnp.pad(whole, ((0, 0), (0, 0), (max(-lead, 0), 0), (0, 0)))
    return whole[:, :, :S]
