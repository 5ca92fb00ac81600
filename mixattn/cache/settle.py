"""The move of a prompt's survivors from pages to a slab.

Axes: K key/value heads, H head size, S positions of a page table, R places of a slab, Z slots.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mixattn.cache import narrow
from mixattn.cache.kept_pages import PagedSlab, SlabRules
from mixattn.keep import Scorer
from pallas_kernels import paged
from pallas_kernels.heavy_hitter.slab import EMPTY
from pallas_kernels.paged import by_head


def settled(
    slab: PagedSlab,
    owner: int,
    rules: SlabRules,
    prompt: paged.Pool,
    table_P: jax.Array,
    tokens: jax.Array,
    votes_KS: jax.Array | None,
    slot: jax.Array,
    scorer: jax.Array,
    limits_3: jax.Array,
) -> PagedSlab:
    """Moves what survives of one prompt into a slot's slab. A prompt within its budget stays in order.

    Args:
      prompt, table_P: the pages of the prompt. tokens: its length.
      votes_KS: summed votes of its queries; None = no scorer reads any.
      limits_3: heavy, recent and sinks for the cut.
    """
    K, (S, R) = slab.pool.n_kv_heads, (table_P.shape[0] * prompt.page_size, slab.score_ZKR.shape[-1])
    at_S = jnp.arange(S)
    position_1KS = jnp.broadcast_to(jnp.where(at_S < tokens, at_S, EMPTY), (1, K, S))
    votes_1KS = jnp.zeros((1, K, S), jnp.float32) if votes_KS is None else votes_KS[None]

    def ranked(scorer: Scorer) -> tuple[jax.Array, jax.Array]:
        k_1SKH = paged.read(prompt, table_P)[0].reshape(1, S, K, -1)
        keys = narrow.widened(jnp.swapaxes(k_1SKH, 1, 2), jnp.float32)
        score_1KS = scorer.settled(votes_1KS, position_1KS)
        return score_1KS[0], scorer.worth(score_1KS, keys, position_1KS, owner)[0]

    branches = [lambda _, scorer=scorer: ranked(scorer) for scorer in rules.scorers]
    score_KS, worth_KS = jax.lax.switch(scorer, branches, None)
    total, n = jnp.sum(limits_3), min(R, S)
    index_KR = _best_places(worth_KS, tokens, limits_3, n)
    index_KR = jnp.where(tokens <= total, jnp.arange(n)[None], index_KR)
    index_KR = jnp.pad(index_KR, ((0, 0), (0, R - n)))
    filled_KR = jnp.broadcast_to(jnp.arange(R)[None] < jnp.minimum(tokens, total), (K, R))
    page_KR, offset_KR = table_P[index_KR // prompt.page_size], index_KR % prompt.page_size
    k_KRH, v_KRH = by_head.read(prompt, page_KR, offset_KR)
    # Places that are free hold zeros: what a former owner left could be NaN.
    k_KRH, v_KRH = (jnp.where(filled_KR[..., None], x, 0) for x in (k_KRH, v_KRH))
    score_KR = jnp.where(filled_KR, jnp.take_along_axis(score_KS, index_KR, axis=1), 0)
    return dataclasses.replace(
        slab,
        pool=by_head.fill(slab.pool, slab.first_page(slot), k_KRH, v_KRH),
        score_ZKR=slab.score_ZKR.at[slot].set(score_KR),
        position_ZKR=slab.position_ZKR.at[slot].set(jnp.where(filled_KR, index_KR, EMPTY)),
    )


def _best_places(worth_KS: jax.Array, tokens: jax.Array, limits_3: jax.Array, n: int) -> jax.Array:
    """The n places of highest rank: sinks and recent ones, then by worth; equals in order of position."""
    _, recent, sinks = limits_3
    at_1S = jnp.arange(worth_KS.shape[1])[None]
    least = jnp.finfo(jnp.float32).min
    rank_KS = jnp.where(jnp.isnan(worth_KS), least, jnp.maximum(worth_KS.astype(jnp.float32), least))
    held_1S = (at_1S < sinks) | (at_1S >= tokens - recent)
    rank_KS = jnp.where(held_1S, jnp.inf, rank_KS)
    return jax.lax.top_k(jnp.where(at_1S < tokens, rank_KS, -jnp.inf), n)[1]
