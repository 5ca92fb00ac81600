"""Decoding over a pool of columns without moving a page: queries are sent to the pages that they read.

Every physical page meets the query of its reader, giving one partial result a page; each row then joins the
partials of its own pages, in the order of its table, so that where a page lies does not change one bit.

A page read by several rows (a shared prefix) cannot follow one reader. Up to `HOT` such pages meet every
row's query in one dense product; with more, the batch falls back to gathering. Both are decided on the
device, step by step.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import xla_tiles
from pallas_kernels.masks import visible
from pallas_kernels.precision import accumulator

HOT = 16
NOWHERE = -(2**29)


def end(start_B, count_B):
    """Positions a row has, 0 if it asks nothing."""
    return jnp.where(count_B > 0, start_B + count_B, 0)


def attend(q_BK1GH, pool, table_BP, start_B, count_B, window, score, gathered):
    """The partial result of one query a row, and None for weights.

    `gathered` is what to run instead when too many pages are shared.
    """
    live_BP = jnp.arange(table_BP.shape[1])[None] * pool.page_size < end(start_B, count_B)[:, None]
    page_BP = jnp.where(live_BP, table_BP, 0)
    readers_P = jnp.zeros(pool.pages, jnp.int32).at[page_BP].add(live_BP.astype(jnp.int32))
    shared_P = readers_P > 1
    ways = jnp.sum(shared_P, dtype=jnp.int32)
    q_pos_B = jnp.where(count_B > 0, start_B, NOWHERE)

    def hot(_):
        hot_X = _first(shared_P, HOT)
        return _from_hot(q_BK1GH, pool, page_BP, live_BP, hot_X, q_pos_B, window, score)

    def cold(_):
        return xla_tiles.nothing(q_BK1GH.shape[:-1], q_BK1GH.shape[-1], accumulator(q_BK1GH.dtype))

    def in_place(_):
        mine_BP = live_BP & ~shared_P[page_BP]
        own = _from_own(q_BK1GH, pool, page_BP, mine_BP, q_pos_B, window, score)
        return xla_tiles.join(own, lax.cond(ways > 0, hot, cold, None))

    def copied(_):
        return gathered(q_BK1GH, pool, table_BP, start_B, count_B, window, score)[0]

    return lax.cond(ways <= HOT, in_place, copied, None), None


def _first(true_P, n: int):
    """The first n places that are true, 0 behind the last. A sort compiles in a seventh of `nonzero`."""
    P = len(true_P)
    at_n = jnp.sort(jnp.where(true_P, jnp.arange(P), P))[:n]
    return jnp.where(at_n < P, at_n, 0)


def _from_own(q_BK1GH, pool, page_BP, mine_BP, q_pos_B, window, score):
    """Joins, for each row, the partials of the pages that it alone reads."""
    (B, P), t = page_BP.shape, pool.page_size
    wide = accumulator(q_BK1GH.dtype)
    target_BP = jnp.where(mine_BP, page_BP, pool.pages)
    row_BP = jnp.broadcast_to(jnp.arange(B)[:, None], (B, P))
    own_P = jnp.zeros(pool.pages, jnp.int32).at[target_BP].set(row_BP, mode="drop")
    base_P = jnp.full(pool.pages, -NOWHERE).at[target_BP].set(jnp.arange(P)[None] * t, mode="drop")
    keep_Pt = visible(q_pos_B[own_P][:, None] - base_P[:, None] - jnp.arange(t)[None], window)

    q_PKGH = q_BK1GH[:, :, 0][own_P]
    raw_PKGt = jnp.einsum("PKGH,PKHt->PKGt", q_PKGH, pool.keys, preferred_element_type=wide)
    weight_PKGt, top, total = xla_tiles.weigh(raw_PKGt, keep_Pt[:, None, None], score)
    out_PKGH = jnp.einsum(
        "PKGt,PKtH->PKGH", weight_PKGt.astype(pool.values.dtype), pool.values, preferred_element_type=wide
    )
    top_BPKG1 = jnp.where(mine_BP[:, :, None, None, None], top[page_BP], -jnp.inf)
    best_BKG1 = jnp.max(top_BPKG1, axis=1)
    factor_BPKG1 = jnp.exp(top_BPKG1 - xla_tiles.finite(best_BKG1)[:, None])
    # A page of another row, or of none, may hold anything: its factor is 0, and 0 x NaN is not.
    theirs_BPKGH = jnp.where(factor_BPKG1 > 0, out_PKGH[page_BP], 0)
    out_BKGH = jnp.sum(factor_BPKG1 * theirs_BPKGH, axis=1)
    total_BKG1 = jnp.sum(factor_BPKG1 * total[page_BP], axis=1)
    return xla_tiles.Partial(*(x[:, :, None] for x in (out_BKGH, best_BKG1, total_BKG1)))


def _from_hot(q_BK1GH, pool, page_BP, live_BP, hot_X, q_pos_B, window, score):
    """The partial of every row over the pages that several rows read."""
    (B, P), t, X = page_BP.shape, pool.page_size, len(hot_X)
    _, K, _, G, _ = q_BK1GH.shape
    wide = accumulator(q_BK1GH.dtype)
    reads_BPX = (page_BP[:, :, None] == hot_X[None, None]) & live_BP[:, :, None] & (hot_X > 0)[None, None]
    base_BX = jnp.max(jnp.where(reads_BPX, jnp.arange(P)[None, :, None] * t, -1), axis=1)
    age_BXt = q_pos_B[:, None, None] - base_BX[:, :, None] - jnp.arange(t)[None, None]
    keep_BXt = visible(age_BXt, window) & (base_BX >= 0)[:, :, None]

    raw_BKGXt = jnp.einsum(
        "BKGH,XKHt->BKGXt", q_BK1GH[:, :, 0], pool.keys[hot_X], preferred_element_type=wide
    )
    weight, top, total = xla_tiles.weigh(
        raw_BKGXt.reshape(B, K, G, X * t), keep_BXt.reshape(B, 1, 1, X * t), score
    )
    weight_BKGXt = weight.reshape(B, K, G, X, t).astype(pool.values.dtype)
    out_BKGH = jnp.einsum("BKGXt,XKtH->BKGH", weight_BKGXt, pool.values[hot_X], preferred_element_type=wide)
    return xla_tiles.Partial(*(x[:, :, None] for x in (out_BKGH, top, total)))
