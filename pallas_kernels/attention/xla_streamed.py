"""The plan for long inputs: loop over query blocks, and for each over just the key blocks it can see.

Which key blocks these are is found from positions and segments before the loops, as a first and a last one
per query block: blocks after the last query, blocks out of the window and blocks of other documents are
never touched. Memory beside inputs and outputs is one tile.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import xla_tiles
from pallas_kernels.masks import visible

BLOCK, MIN_BLOCK = 128, 32
FAR = jnp.iinfo(jnp.int32).max // 4


def block_of(length: int, window: int | None) -> int:
    near = BLOCK if window is None else max(MIN_BLOCK, window // 2)
    return min(BLOCK, near, length)


def forward(q_BKTGH, k_BKSH, v_BKSH, places, static, wide):
    """Returns out_BKTGH and lse_BKTG."""
    B, K, T, G, H = q_BKTGH.shape
    grid = BlockGrid(places, static, T, k_BKSH.shape[2])
    k_BKSH, v_BKSH = grid.pad_keys(k_BKSH, 2), grid.pad_keys(v_BKSH, 2)

    def rows(_, x):
        i, q = x

        def keys(j, part):
            k, v = grid.key_block(k_BKSH, j), grid.key_block(v_BKSH, j)
            return xla_tiles.join(part, xla_tiles.forward(q, k, v, grid.keep(i, j), static.score, wide))

        start = xla_tiles.nothing((B, K, grid.bq, G), H, wide)
        return None, xla_tiles.finish(lax.fori_loop(grid.first_n[i], grid.end_n[i], keys, start))

    _, (out, lse) = lax.scan(rows, None, (jnp.arange(grid.n), grid.query_blocks(q_BKTGH)))
    return grid.join_queries(out), grid.join_queries(lse)


def backward(q_BKTGH, k_BKSH, v_BKSH, places, static, wide, dout_BKTGH, lse_BKTG, delta_BKTG):
    """Returns dq_BKTGH, dk_BKSH, dv_BKSH."""
    S = k_BKSH.shape[2]
    grid = BlockGrid(places, static, q_BKTGH.shape[2], S)
    k_BKSH, v_BKSH = grid.pad_keys(k_BKSH, 2), grid.pad_keys(v_BKSH, 2)

    def rows(sums, x):
        i, q, dout, lse, delta = x

        def keys(j, sums):
            dq, dk_BKSH, dv_BKSH = sums
            k, v = grid.key_block(k_BKSH, j), grid.key_block(v_BKSH, j)
            more = xla_tiles.backward(q, k, v, grid.keep(i, j), dout, lse, delta, static.score, wide)
            return dq + more[0], grid.add_block(dk_BKSH, more[1], j), grid.add_block(dv_BKSH, more[2], j)

        dq, *sums = lax.fori_loop(grid.first_n[i], grid.end_n[i], keys, (jnp.zeros(q.shape, wide), *sums))
        return tuple(sums), dq

    blocks = (grid.query_blocks(x) for x in (q_BKTGH, dout_BKTGH, lse_BKTG, delta_BKTG))
    zeros = jnp.zeros(k_BKSH.shape, wide), jnp.zeros(v_BKSH.shape, wide)
    (dk_BKSH, dv_BKSH), dq = lax.scan(rows, zeros, (jnp.arange(grid.n), *blocks))
    return grid.join_queries(dq), dk_BKSH[:, :, :S], dv_BKSH[:, :, :S]


class BlockGrid:
    """n blocks of bq queries by m blocks of bk keys, and the range of key blocks of each query block."""

    def __init__(self, places, static, T, S, bq=None, bk=None):
        self.static, self.T, self.S = static, T, S
        self.bq = bq or block_of(T, static.window)
        self.bk = bk or block_of(S, static.window)
        self.n, self.m = -(-T // self.bq), -(-S // self.bk)
        q_pos, k_pos = places.q_pos_BT, places.k_pos_BS
        if q_pos is None:
            q_pos, k_pos = jnp.arange(S - T, S)[None], jnp.arange(S)[None]
        segments = places.segment_q_BT, places.segment_k_BS
        if segments[0] is None:
            segments = jnp.zeros((1, T), jnp.int32), jnp.zeros((1, S), jnp.int32)
        # Padding: queries before everything, keys in empty slots; in the segment of their neighbours, so
        # that they widen no block's range of segments.
        q_tail, k_tail = ((0, 0), (0, self.n * self.bq - T)), ((0, 0), (0, self.m * self.bk - S))
        self.q_pos_nB = _cut(jnp.pad(q_pos, q_tail, constant_values=-FAR), self.n)
        self.k_pos_mB = _cut(jnp.pad(k_pos, k_tail, constant_values=-1), self.m)
        self.q_segment_nB = _cut(jnp.pad(segments[0], q_tail, mode="edge"), self.n)
        self.k_segment_mB = _cut(jnp.pad(segments[1], k_tail, mode="edge"), self.m)
        self.may_nm = self._may()
        self.first_n, self.end_n = ranges(self.may_nm)

    def _may(self):
        """Which key blocks may hold a key that some query of a block sees, in any row: bool [n, m]."""
        filled = self.k_pos_mB >= 0
        oldest_mB = jnp.min(jnp.where(filled, self.k_pos_mB, FAR), axis=-1)
        newest_mB = jnp.max(jnp.where(filled, self.k_pos_mB, -FAR), axis=-1)
        may_nm = jnp.any(filled, axis=-1)[None]
        if self.static.causal:
            real = self.q_pos_nB > -FAR
            first_nB = jnp.min(jnp.where(real, self.q_pos_nB, FAR), axis=-1)
            last_nB = jnp.max(self.q_pos_nB, axis=-1)
            may_nm = may_nm & (last_nB[:, None] >= oldest_mB[None])
            if self.static.window is not None:
                may_nm = may_nm & visible(
                    jnp.maximum(first_nB[:, None] - newest_mB[None], 0), self.static.window
                )
        low = [jnp.min(x, axis=-1) for x in (self.q_segment_nB, self.k_segment_mB)]
        high = [jnp.max(x, axis=-1) for x in (self.q_segment_nB, self.k_segment_mB)]
        may_nm = may_nm & (low[0][:, None] <= high[1][None]) & (low[1][None] <= high[0][:, None])
        return jnp.any(may_nm, axis=-1)

    def keep(self, i, j):
        """Which keys of block j the queries of block i see: bool [B or 1, 1, bq, bk]."""
        q_pos, k_pos = self.q_pos_nB[i][:, :, None], self.k_pos_mB[j][:, None, :]
        seen = (k_pos >= 0) & (q_pos > -FAR)
        if self.static.causal:
            seen = seen & visible(q_pos - k_pos, self.static.window)
        same = self.q_segment_nB[i][:, :, None] == self.k_segment_mB[j][:, None, :]
        return (seen & same)[:, None]

    def pad_keys(self, x, axis):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, self.m * self.bk - self.S)
        return jnp.pad(x, pad)

    def key_block(self, x_BKSH, j):
        return lax.dynamic_slice_in_dim(x_BKSH, j * self.bk, self.bk, axis=2)

    def add_block(self, x_BKSH, more, j):
        return lax.dynamic_update_slice_in_dim(x_BKSH, self.key_block(x_BKSH, j) + more, j * self.bk, axis=2)

    def query_blocks(self, x_BKTetc):
        """[B, K, T, ...] to [n, B, K, bq, ...]."""
        B, K, T, *etc = x_BKTetc.shape
        x = jnp.pad(x_BKTetc, ((0, 0), (0, 0), (0, self.n * self.bq - T), *((0, 0) for _ in etc)))
        return jnp.moveaxis(x.reshape(B, K, self.n, self.bq, *etc), 2, 0)

    def join_queries(self, x_nBKTetc):
        """The inverse of `query_blocks`."""
        n, B, K, bq, *etc = x_nBKTetc.shape
        return jnp.moveaxis(x_nBKTetc, 0, 2).reshape(B, K, n * bq, *etc)[:, :, : self.T]


def ranges(may_nm):
    """For each n the first m that may, and one past the last; an empty range if none may."""
    first_n = jnp.argmax(may_nm, axis=1)
    end_n = may_nm.shape[1] - jnp.argmax(may_nm[:, ::-1], axis=1)
    return first_n, jnp.where(jnp.any(may_nm, axis=1), end_n, first_n)


def _cut(x_BT, n):
    """[B, n t] to [n, B, t]."""
    B, T = x_BT.shape
    return jnp.moveaxis(x_BT.reshape(B, n, T // n), 1, 0)
