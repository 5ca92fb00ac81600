"""Attention of a chunk over pages and the sums of its weights in one pass, in plain XLA.

Some queries of one key/value head meet the row's keys block by block, as in `paged.xla`. Their weights stay
until the last block has told the log-sum-exp; then each block's weights are brought to it and added up over
the queries. Nothing is computed twice: beside plain attention it costs one write and one read of the weights.
What stays is bounded in bytes, not by the context: the longer a table, the fewer queries at a time.

Axes: C queries of a row, x tiles, R rows of a tile (queries x heads of a group), j blocks of S positions, n
pages of a block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.masks import visible
from pallas_kernels.paged import Pool
from pallas_kernels.paged.xla import BLOCK
from pallas_kernels.typing import accumulator_dtype

TILE_BYTES = 4 << 20  # of the weights that stay


class _Chunk(NamedTuple):
    """One row.

    Attributes:
      q_CNH, page_jn: its queries, and its pages in whole blocks.
      start, tokens: its first query's position, and how many are real. first: from where on they vote.
    """

    q_CNH: jax.Array
    page_jn: jax.Array
    start: jax.Array
    tokens: jax.Array
    first: jax.Array


class _Tile(NamedTuple):
    """Some queries of one head: q_RH, their places in the chunk, the row's used blocks, and `head`."""

    q_RH: jax.Array
    query_R: jax.Array
    head: jax.Array
    blocks: jax.Array


def attend(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    first_B: jax.Array,
    scale: float,
    softcap: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BCNH and sums_BKS."""
    (B, P), t = table_BP.shape, pool.page_size
    n = max(1, min(P, BLOCK // t))
    end_B1 = jnp.where(count_B > 0, start_B + count_B, 0)[:, None]
    page_BP = jnp.where(jnp.arange(P)[None] * t < end_B1, table_BP, 0)
    page_Bjn = jnp.pad(page_BP, ((0, 0), (0, -P % n))).reshape(B, -1, n)
    row = functools.partial(_row, pool=pool, score=ScoreTransform(float(scale), softcap))
    out_BCNH, sums_BKS = lax.map(row, _Chunk(q_BCNH, page_Bjn, start_B, count_B, first_B))
    return out_BCNH, sums_BKS[:, :, : P * t]


def _row(chunk: _Chunk, *, pool: Pool, score: ScoreTransform) -> tuple[jax.Array, jax.Array]:
    """out_CNH and sums_KS of one row."""
    (C, N, H), K = chunk.q_CNH.shape, pool.n_kv_heads
    G, (all_blocks, n) = N // K, chunk.page_jn.shape
    S = n * pool.page_size
    queries = _queries(C, 4 * G * all_blocks * S)
    tiles = -(-C // queries)
    q_CNH = jnp.pad(chunk.q_CNH, ((0, tiles * queries - C), (0, 0), (0, 0)))
    q_xqKGH = q_CNH.reshape(tiles, queries, K, G, H)
    q_xRH = jnp.moveaxis(q_xqKGH, 2, 0).reshape(K * tiles, queries * G, H)
    blocks = -(-jnp.where(chunk.tokens > 0, chunk.start + chunk.tokens, 0) // S)

    def step(sums_KjS: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, q_RH = item
        query_R = x % tiles * queries + jnp.arange(queries * G) // G
        return _tile(_Tile(q_RH, query_R, x // tiles, blocks), chunk, sums_KjS, pool, score)

    sums_KjS, out_xRH = lax.scan(
        step, jnp.zeros((K, all_blocks, S), jnp.float32), (jnp.arange(K * tiles), q_xRH)
    )
    out_KCGH = out_xRH.reshape(K, tiles * queries, G, H)[:, :C]
    return jnp.moveaxis(out_KCGH, 0, 1).reshape(C, N, H), sums_KjS.reshape(K, -1)


def _queries(C: int, bytes_each: int) -> int:
    """Queries of a tile: a power of two whose weights fit, or all."""
    fit = max(1, TILE_BYTES // bytes_each)
    return min(C, 1 << (fit.bit_length() - 1))


def _tile(
    tile: _Tile, chunk: _Chunk, sums_KjS: jax.Array, pool: Pool, score: ScoreTransform
) -> tuple[jax.Array, jax.Array]:
    """The sums with this tile's, and out_RH."""
    (R, H), (_, all_blocks, S) = tile.q_RH.shape, sums_KjS.shape
    acc_dtype = accumulator_dtype(tile.q_RH.dtype)
    at_R = chunk.start + tile.query_R
    real_R1 = (tile.query_R < chunk.tokens)[:, None]

    type Carry = tuple[xla_tiles.PartialAttention, jax.Array, jax.Array]

    def attended(j: jax.Array, carry: Carry) -> Carry:
        part, weight_jRS, top_jR = carry
        k_SH, v_SH = _keys_values(pool, chunk.page_jn[j], tile.head)
        mask_RS = visible(at_R[:, None] - (j * S + jnp.arange(S))[None], None) & real_R1
        raw_RS = jnp.einsum("RH,SH->RS", tile.q_RH, k_SH, preferred_element_type=acc_dtype)
        weight_RS, top_R1, total_R1 = xla_tiles.unnormalized_weights(raw_RS, mask_RS, score)
        out_RH = jnp.dot(weight_RS.astype(v_SH.dtype), v_SH, preferred_element_type=acc_dtype)
        part = xla_tiles.merge(part, xla_tiles.PartialAttention(out_RH, top_R1, total_R1))
        return part, weight_jRS.at[j].set(weight_RS), top_jR.at[j].set(top_R1[:, 0])

    empty = xla_tiles.empty_partial((R,), H, acc_dtype)
    weights = jnp.zeros((all_blocks, R, S), acc_dtype), jnp.zeros((all_blocks, R), acc_dtype)
    part, weight_jRS, top_jR = lax.fori_loop(0, tile.blocks, attended, (empty, *weights))
    out_RH, lse_R = xla_tiles.finalize(part)
    votes_R = (at_R >= chunk.first) & real_R1[:, 0]

    def added(j: jax.Array, sums_KjS: jax.Array) -> jax.Array:
        share_R = jnp.where(votes_R, jnp.exp(top_jR[j] - xla_tiles.finite(lse_R)), 0)
        return sums_KjS.at[tile.head, j].add(jnp.dot(share_R, weight_jRS[j]).astype(jnp.float32))

    blocks = jnp.where(jnp.any(votes_R), tile.blocks, 0)
    sums_KjS = lax.fori_loop(0, blocks, added, sums_KjS)
    return sums_KjS, out_RH.astype(tile.q_RH.dtype)


def _keys_values(pool: Pool, page_n: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
    """k_SH and v_SH of one head's pages, copied."""
    k, v = pool.keys[page_n, head], pool.values[page_n, head]
    k_ntH = jnp.swapaxes(k, -1, -2) if pool.layout == "columns" else k
    return k_ntH.reshape(-1, pool.head_dim), v.reshape(-1, pool.head_dim)
