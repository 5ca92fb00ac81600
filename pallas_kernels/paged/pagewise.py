"""Decoding over a pool of columns without copying pages: queries are sent to the pages that they read.

Every physical page meets the query of its reader, which gives one partial result per page. Each row then
merges the partials of its pages in the order of its table, so the physical location of a page changes no
bit. Weights are those of the pages, brought to the row's common maximum: no page is copied for them.

A page that several rows read (a shared prefix) has no single reader. Up to `MAX_SHARED_PAGES` such pages
meet the query of every row in one dense product; with more, the batch falls back to gathering. The device
decides both in each step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import xla_tiles
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.masks import visible
from pallas_kernels.paged import Pool
from pallas_kernels.typing import accumulator_dtype

MAX_SHARED_PAGES = 16
# The position of a query that sees nothing.
NO_POSITION = -(2**29)


def row_end(start_B: jax.Array, count_B: jax.Array) -> jax.Array:
    """Positions of a row up to its last query; 0 for an empty row."""
    return jnp.where(count_B > 0, start_B + count_B, 0)


def attend(
    q_BK1GH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    window: int | None,
    score: ScoreTransform,
    gathered: Callable[..., tuple[xla_tiles.PartialAttention, jax.Array | None]] | None,
    return_weights: bool = False,
) -> tuple[xla_tiles.PartialAttention, jax.Array | None]:
    """The partial result of one query per row, and weights_B1NS if requested.

    `gathered` computes the result instead when too many pages are shared; with weights, when any is. None:
    the caller promises that no page is, so nothing is counted and no other branch is compiled.
    """
    live_BP = jnp.arange(table_BP.shape[1])[None] * pool.page_size < row_end(start_B, count_B)[:, None]
    page_BP = jnp.where(live_BP, table_BP, 0)
    q_pos_B = jnp.where(count_B > 0, start_B, NO_POSITION)
    if gathered is None:
        # The bits of the branch `unshared` below: fused with what is around it, it would round differently.
        given = q_BK1GH, page_BP, live_BP, _readers(page_BP, live_BP, q_pos_B, pool, window)
        q_BK1GH, page_BP, live_BP, readers = lax.optimization_barrier(given)
        part, weights_B1NS = _unshared_pages(q_BK1GH, pool, page_BP, live_BP, readers, score)
        if not return_weights:
            return lax.optimization_barrier(part), None
        return lax.optimization_barrier((part, weights_B1NS))
    copying = gathered
    readers_P = jnp.zeros(pool.pages, jnp.int32).at[page_BP].add(live_BP.astype(jnp.int32))
    shared_P = readers_P > 1
    n_shared = jnp.sum(shared_P, dtype=jnp.int32)

    # What follows from the table alone is computed here, once for all layers: inside a branch XLA would
    # compute it anew for each.
    mine_BP = live_BP & ~shared_P[page_BP]
    readers = _readers(page_BP, mine_BP, q_pos_B, pool, window)

    def with_weights(_: None) -> tuple[xla_tiles.PartialAttention, jax.Array]:
        return _unshared_pages(q_BK1GH, pool, page_BP, mine_BP, readers, score)

    def copied_with_weights(_: None) -> tuple[xla_tiles.PartialAttention, jax.Array]:
        part, weights_B1NS = copying(q_BK1GH, pool, table_BP, start_B, count_B, window, score, True)
        assert weights_B1NS is not None
        return part, weights_B1NS

    if return_weights:
        return lax.cond(n_shared > 0, copied_with_weights, with_weights, None)

    def unshared(_: None) -> xla_tiles.PartialAttention:
        return with_weights(None)[0]

    def with_shared(_: None) -> xla_tiles.PartialAttention:
        shared_X = _first_true(shared_P, MAX_SHARED_PAGES)
        shared = _shared_pages(q_BK1GH, pool, page_BP, live_BP, shared_X, q_pos_B, window, score)
        return xla_tiles.merge(unshared(None), shared)

    def copied(_: None) -> xla_tiles.PartialAttention:
        return copying(q_BK1GH, pool, table_BP, start_B, count_B, window, score)[0]

    branch = (n_shared > 0).astype(jnp.int32) + (n_shared > MAX_SHARED_PAGES).astype(jnp.int32)
    return lax.switch(branch, [unshared, with_shared, copied], None), None


def _first_true(true_P: jax.Array, n: int) -> jax.Array:
    """The first n true indices, 0 behind the last. A sort compiles seven times faster than `nonzero`."""
    P = len(true_P)
    at_n = jnp.sort(jnp.where(true_P, jnp.arange(P), P))[:n]
    return jnp.where(at_n < P, at_n, 0)


def _readers(
    page_BP: jax.Array, mine_BP: jax.Array, q_pos_B: jax.Array, pool: Pool, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """The row that reads each page alone, own_P, and which of its positions the row's query sees, mask_Pt."""
    (B, P), t = page_BP.shape, pool.page_size
    target_BP = jnp.where(mine_BP, page_BP, pool.pages)
    row_BP = jnp.broadcast_to(jnp.arange(B)[:, None], (B, P))
    own_P = jnp.zeros(pool.pages, jnp.int32).at[target_BP].set(row_BP, mode="drop")
    base_P = jnp.full(pool.pages, -NO_POSITION).at[target_BP].set(jnp.arange(P)[None] * t, mode="drop")
    return own_P, visible(q_pos_B[own_P][:, None] - base_P[:, None] - jnp.arange(t)[None], window)


def _unshared_pages(
    q_BK1GH: jax.Array,
    pool: Pool,
    page_BP: jax.Array,
    mine_BP: jax.Array,
    readers: tuple[jax.Array, jax.Array],
    score: ScoreTransform,
) -> tuple[xla_tiles.PartialAttention, jax.Array]:
    """Merges, for each row, the partials of the pages that only it reads; and their weights_B1NS."""
    acc_dtype = accumulator_dtype(q_BK1GH.dtype)
    own_P, mask_Pt = readers
    q_PKGH = q_BK1GH[:, :, 0][own_P]
    raw_PKGt = jnp.einsum("PKGH,PKHt->PKGt", q_PKGH, pool.keys, preferred_element_type=acc_dtype)
    weight_PKGt, top, total = xla_tiles.unnormalized_weights(raw_PKGt, mask_Pt[:, None, None], score)
    out_PKGH = jnp.einsum(
        "PKGt,PKtH->PKGH",
        weight_PKGt.astype(pool.values.dtype),
        pool.values,
        preferred_element_type=acc_dtype,
    )
    top_BPKG1 = jnp.where(mine_BP[:, :, None, None, None], top[page_BP], -jnp.inf)
    best_BKG1 = jnp.max(top_BPKG1, axis=1)
    factor_BPKG1 = jnp.exp(top_BPKG1 - xla_tiles.finite(best_BKG1)[:, None])
    # Pages of other rows, or of none, may hold any value. Their factor is 0, but 0 * NaN is NaN.
    part_BPKGH = jnp.where(factor_BPKG1 > 0, out_PKGH[page_BP], 0)
    out_BKGH = jnp.sum(factor_BPKG1 * part_BPKGH, axis=1)
    total_BKG1 = jnp.sum(factor_BPKG1 * total[page_BP], axis=1)
    part = xla_tiles.PartialAttention(*(x[:, :, None] for x in (out_BKGH, best_BKG1, total_BKG1)))
    share_BPKG1 = factor_BPKG1 / jnp.where(total_BKG1 > 0, total_BKG1, 1)[:, None]
    weight_BPKGt = jnp.where(share_BPKG1 > 0, share_BPKG1 * weight_PKGt[page_BP], 0)
    B, P, K, G, t = weight_BPKGt.shape
    return part, jnp.moveaxis(weight_BPKGt, 1, 3).reshape(B, 1, K * G, P * t)


def _shared_pages(
    q_BK1GH: jax.Array,
    pool: Pool,
    page_BP: jax.Array,
    live_BP: jax.Array,
    shared_X: jax.Array,
    q_pos_B: jax.Array,
    window: int | None,
    score: ScoreTransform,
) -> xla_tiles.PartialAttention:
    """The partial of every row over the pages that several rows read."""
    (B, P), t, X = page_BP.shape, pool.page_size, len(shared_X)
    _, K, _, G, _ = q_BK1GH.shape
    acc_dtype = accumulator_dtype(q_BK1GH.dtype)
    reads_BPX = (
        (page_BP[:, :, None] == shared_X[None, None]) & live_BP[:, :, None] & (shared_X > 0)[None, None]
    )
    base_BX = jnp.max(jnp.where(reads_BPX, jnp.arange(P)[None, :, None] * t, -1), axis=1)
    age_BXt = q_pos_B[:, None, None] - base_BX[:, :, None] - jnp.arange(t)[None, None]
    mask_BXt = visible(age_BXt, window) & (base_BX >= 0)[:, :, None]

    raw_BKGXt = jnp.einsum(
        "BKGH,XKHt->BKGXt", q_BK1GH[:, :, 0], pool.keys[shared_X], preferred_element_type=acc_dtype
    )
    weight, top, total = xla_tiles.unnormalized_weights(
        raw_BKGXt.reshape(B, K, G, X * t), mask_BXt.reshape(B, 1, 1, X * t), score
    )
    weight_BKGXt = weight.reshape(B, K, G, X, t).astype(pool.values.dtype)
    out_BKGH = jnp.einsum(
        "BKGXt,XKtH->BKGH", weight_BKGXt, pool.values[shared_X], preferred_element_type=acc_dtype
    )
    return xla_tiles.PartialAttention(*(x[:, :, None] for x in (out_BKGH, top, total)))
