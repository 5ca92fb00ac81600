"""The plan for short inputs: a few blocks of queries, each against every key up to its last query.

One block against all keys where positions are given or nothing is causal: then no key is known to be
invisible before the arrays are.
"""

import jax.numpy as jnp

from pallas_kernels.attention import xla_tiles
from pallas_kernels.masks import visible

# Fewer rows than this make poor matrix products; more blocks than this compile slowly.
MIN_BLOCK, MAX_BLOCKS = 64, 8


def block_of(T: int) -> int:
    return max(MIN_BLOCK, -(-T // MAX_BLOCKS))


def pairs(T: int, S: int) -> int:
    """Scores alive at once, per query head."""
    return min(block_of(T), T) * S


def forward(q_BKTGH, k_BKSH, v_BKSH, places, static, wide):
    """Returns out_BKTGH and lse_BKTG."""
    results = []
    for rows, keys, keep_B1TS in _blocks(q_BKTGH, k_BKSH, places, static):
        part = xla_tiles.forward(
            q_BKTGH[:, :, rows], k_BKSH[:, :, keys], v_BKSH[:, :, keys], keep_B1TS, static.score, wide
        )
        results.append(xla_tiles.finish(part))
    outs, lses = zip(*results, strict=True)
    return jnp.concatenate(outs, axis=2), jnp.concatenate(lses, axis=2)


def backward(q_BKTGH, k_BKSH, v_BKSH, places, static, wide, dout_BKTGH, lse_BKTG, delta_BKTG):
    """Returns dq_BKTGH, dk_BKSH, dv_BKSH."""
    S = k_BKSH.shape[2]
    dqs, dk, dv = [], jnp.zeros(k_BKSH.shape, wide), jnp.zeros(v_BKSH.shape, wide)
    for rows, keys, keep_B1TS in _blocks(q_BKTGH, k_BKSH, places, static):
        q, dout, lse, delta = (x[:, :, rows] for x in (q_BKTGH, dout_BKTGH, lse_BKTG, delta_BKTG))
        k, v = k_BKSH[:, :, keys], v_BKSH[:, :, keys]
        dq, dk_part, dv_part = xla_tiles.backward(q, k, v, keep_B1TS, dout, lse, delta, static.score, wide)
        tail = ((0, 0), (0, 0), (0, S - keys.stop), (0, 0))
        dk, dv = dk + jnp.pad(dk_part, tail), dv + jnp.pad(dv_part, tail)
        dqs.append(dq)
    return jnp.concatenate(dqs, axis=2), dk, dv


def _blocks(q_BKTGH, k_BKSH, places, static):
    """Slices of rows, slices of keys, and which of these see each other."""
    T, S = q_BKTGH.shape[2], k_BKSH.shape[2]
    plain = places.q_pos_BT is None and static.causal
    block = block_of(T) if plain else T
    for start in range(0, T, block):
        rows = slice(start, min(start + block, T))
        keys = slice(0, S - T + rows.stop if plain else S)
        yield rows, keys, keep(places, static, T, S, rows, keys)[:, None]


def keep(places, static, T, S, rows, keys):
    """Which keys each query sees: bool [B or 1, rows, keys]."""
    q_pos_BT, k_pos_BS = places.q_pos_BT, places.k_pos_BS
    if q_pos_BT is None:
        q_pos_BT, k_pos_BS = jnp.arange(S - T, S)[None], jnp.arange(S)[None]
    q_pos_BT, k_pos_BS = q_pos_BT[:, rows, None], k_pos_BS[:, None, keys]
    seen_BTS = visible(q_pos_BT - k_pos_BS, static.window) if static.causal else True
    seen_BTS = seen_BTS & jnp.broadcast_to(
        k_pos_BS >= 0, (len(q_pos_BT), q_pos_BT.shape[1], k_pos_BS.shape[2])
    )
    if places.segment_q_BT is not None:
        seen_BTS = seen_BTS & (places.segment_q_BT[:, rows, None] == places.segment_k_BS[:, None, keys])
    return seen_BTS
