"""The plan for long inputs: a loop over query blocks, and for each a loop over the key blocks it can see.

The range of key blocks of each query block is computed from positions and segments before the loops: blocks
after the last query, out of the window or of other documents are skipped. Memory beside inputs and outputs is
one tile.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.operands import StaticOptions, TokenPositions
from pallas_kernels.masks import visible

BLOCK, MIN_BLOCK = 128, 32
FAR = jnp.iinfo(jnp.int32).max // 4  # beyond every position


def block_size(length: int, window: int | None) -> int:
    """Queries or keys per block; narrower for a narrow window."""
    near = BLOCK if window is None else max(MIN_BLOCK, window // 2)
    return min(BLOCK, near, length)


def forward(
    q_BKTGH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    positions: TokenPositions,
    static: StaticOptions,
    acc_dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BKTGH and lse_BKTG."""
    B, K, T, G, H = q_BKTGH.shape
    grid = BlockGrid(positions, static, T, k_BKSH.shape[2])
    k_BKSH, v_BKSH = grid.pad_keys(k_BKSH, 2), grid.pad_keys(v_BKSH, 2)

    def query_block(_: None, x: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        i, q = x

        def key_block(j: jax.Array, part: xla_tiles.PartialAttention) -> xla_tiles.PartialAttention:
            k, v = grid.key_block(k_BKSH, j), grid.key_block(v_BKSH, j)
            return xla_tiles.merge(part, xla_tiles.forward(q, k, v, grid.mask(i, j), static.score, acc_dtype))

        start = xla_tiles.empty_partial((B, K, grid.bq, G), H, acc_dtype)
        return None, xla_tiles.finalize(lax.fori_loop(grid.first_n[i], grid.end_n[i], key_block, start))

    _, (out, lse) = lax.scan(query_block, None, (jnp.arange(grid.n), grid.query_blocks(q_BKTGH)))
    return grid.join_queries(out), grid.join_queries(lse)


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
    grid = BlockGrid(positions, static, q_BKTGH.shape[2], S)
    k_BKSH, v_BKSH = grid.pad_keys(k_BKSH, 2), grid.pad_keys(v_BKSH, 2)

    def query_block(
        sums: tuple[jax.Array, jax.Array], x: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        i, q, dout, lse, delta = x

        def key_block(
            j: jax.Array, sums: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            dq, dk_BKSH, dv_BKSH = sums
            k, v = grid.key_block(k_BKSH, j), grid.key_block(v_BKSH, j)
            more = xla_tiles.backward(q, k, v, grid.mask(i, j), dout, lse, delta, static.score, acc_dtype)
            return dq + more[0], grid.add_block(dk_BKSH, more[1], j), grid.add_block(dv_BKSH, more[2], j)

        dq, dk_BKSH, dv_BKSH = lax.fori_loop(
            grid.first_n[i], grid.end_n[i], key_block, (jnp.zeros(q.shape, acc_dtype), *sums)
        )
        return (dk_BKSH, dv_BKSH), dq

    blocks = (grid.query_blocks(x) for x in (q_BKTGH, dout_BKTGH, lse_BKTG, delta_BKTG))
    zeros = jnp.zeros(k_BKSH.shape, acc_dtype), jnp.zeros(v_BKSH.shape, acc_dtype)
    (dk_BKSH, dv_BKSH), dq = lax.scan(query_block, zeros, (jnp.arange(grid.n), *blocks))
    return grid.join_queries(dq), dk_BKSH[:, :, :S], dv_BKSH[:, :, :S]


def max_blocks_touched(n_positions: int, block: int) -> int:
    """Maximum number of blocks that `n_positions` consecutive positions touch, at the worst alignment."""
    return (n_positions + block - 2) // block + 1


class BlockGrid:
    """n blocks of bq queries by m blocks of bk keys, and the range of key blocks of each query block."""

    def __init__(
        self,
        positions: TokenPositions,
        static: StaticOptions,
        T: int,
        S: int,
        bq: int | None = None,
        bk: int | None = None,
    ) -> None:
        self.static, self.T, self.S = static, T, S
        self.bq = bq or block_size(T, static.window)
        self.bk = bk or block_size(S, static.window)
        self.n, self.m = -(-T // self.bq), -(-S // self.bk)
        q_pos, k_pos = positions.token_positions(T, S)
        segments = positions.token_segments(T, S)
        # Padding: queries before every key, keys in empty slots. They take the segment of their neighbours,
        # so that no block's range of segments widens.
        q_tail, k_tail = ((0, 0), (0, self.n * self.bq - T)), ((0, 0), (0, self.m * self.bk - S))
        self.q_pos_nB = _split_blocks(jnp.pad(q_pos, q_tail, constant_values=-FAR), self.n)
        self.k_pos_mB = _split_blocks(jnp.pad(k_pos, k_tail, constant_values=-1), self.m)
        self.q_segment_nB = _split_blocks(jnp.pad(segments[0], q_tail, mode="edge"), self.n)
        self.k_segment_mB = _split_blocks(jnp.pad(segments[1], k_tail, mode="edge"), self.m)
        self.block_mask_nm = self._block_mask()
        self.first_n, self.end_n = block_ranges(self.block_mask_nm)

    def _block_mask(self) -> jax.Array:
        """Which key blocks may hold a key that some query of a block sees, in any batch row: bool [n, m]."""
        filled = self.k_pos_mB >= 0
        oldest_mB = jnp.min(jnp.where(filled, self.k_pos_mB, FAR), axis=-1)
        newest_mB = jnp.max(jnp.where(filled, self.k_pos_mB, -FAR), axis=-1)
        block_mask_nm = jnp.any(filled, axis=-1)[None]
        if self.static.causal:
            real = self.q_pos_nB > -FAR
            first_nB = jnp.min(jnp.where(real, self.q_pos_nB, FAR), axis=-1)
            last_nB = jnp.max(self.q_pos_nB, axis=-1)
            block_mask_nm = block_mask_nm & (last_nB[:, None] >= oldest_mB[None])
            if self.static.window is not None:
                block_mask_nm = block_mask_nm & visible(
                    jnp.maximum(first_nB[:, None] - newest_mB[None], 0), self.static.window
                )
        low = [jnp.min(x, axis=-1) for x in (self.q_segment_nB, self.k_segment_mB)]
        high = [jnp.max(x, axis=-1) for x in (self.q_segment_nB, self.k_segment_mB)]
        block_mask_nm = (
            block_mask_nm & (low[0][:, None] <= high[1][None]) & (low[1][None] <= high[0][:, None])
        )
        return jnp.any(block_mask_nm, axis=-1)

    def mask(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """Which keys of block j are visible to the queries of block i: bool [B or 1, 1, bq, bk]."""
        q_pos, k_pos = self.q_pos_nB[i][:, :, None], self.k_pos_mB[j][:, None, :]
        seen = (k_pos >= 0) & (q_pos > -FAR)
        if self.static.causal:
            seen = seen & visible(q_pos - k_pos, self.static.window)
        same = self.q_segment_nB[i][:, :, None] == self.k_segment_mB[j][:, None, :]
        return (seen & same)[:, None]

    def pad_keys(self, x: jax.Array, axis: int) -> jax.Array:
        """Pads `axis` from S to m bk."""
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, self.m * self.bk - self.S)
        return jnp.pad(x, pad)

    def key_block(self, x_BKSH: jax.Array, j: jax.Array) -> jax.Array:
        """Block j of padded keys, [B, K, bk, ...]."""
        return lax.dynamic_slice_in_dim(x_BKSH, j * self.bk, self.bk, axis=2)

    def add_block(self, x_BKSH: jax.Array, block: jax.Array, j: jax.Array) -> jax.Array:
        """Adds `block` to block j of padded keys."""
        return lax.dynamic_update_slice_in_dim(x_BKSH, self.key_block(x_BKSH, j) + block, j * self.bk, axis=2)

    def query_blocks(self, x_BKTetc: jax.Array) -> jax.Array:
        """[B, K, T, ...] to [n, B, K, bq, ...]."""
        B, K, T, *etc = x_BKTetc.shape
        x = jnp.pad(x_BKTetc, ((0, 0), (0, 0), (0, self.n * self.bq - T), *((0, 0) for _ in etc)))
        return jnp.moveaxis(x.reshape(B, K, self.n, self.bq, *etc), 2, 0)

    def join_queries(self, x_nBKTetc: jax.Array) -> jax.Array:
        """The inverse of `query_blocks`."""
        n, B, K, bq, *etc = x_nBKTetc.shape
        return jnp.moveaxis(x_nBKTetc, 0, 2).reshape(B, K, n * bq, *etc)[:, :, : self.T]


def block_ranges(block_mask_nm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first true m of each n, and one past the last true m; an empty range without a true m."""
    first_n = jnp.argmax(block_mask_nm, axis=1)
    end_n = block_mask_nm.shape[1] - jnp.argmax(block_mask_nm[:, ::-1], axis=1)
    return first_n, jnp.where(jnp.any(block_mask_nm, axis=1), end_n, first_n)


def _split_blocks(x_BT: jax.Array, n: int) -> jax.Array:
    """[B, n t] to [n, B, t]."""
    B, T = x_BT.shape
    return jnp.moveaxis(x_BT.reshape(B, n, T // n), 1, 0)
