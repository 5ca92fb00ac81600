"""A cache of fixed size with one eviction per step: the decode side of H2O.

For each key/value head separately, a slab holds the `heavy` keys of highest score and the `recent` newest
keys. It has heavy + recent + 1 slots, since a new token enters before the eviction of its step. The order of
slots has no meaning.
"""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from pallas_kernels.attention import operands, xla_tiles
from pallas_kernels.masks import visible
from pallas_kernels.typing import accumulator_dtype

EMPTY = -1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["k_BKRH", "v_BKRH", "score_BKR", "position_BKR"],
    meta_fields=["heavy", "recent"],
)
@dataclass(frozen=True)
class Slab:
    """The surviving keys of a batch of requests.

    Attributes:
      k_BKRH, v_BKRH: keys (already rotated) and values; stale in empty slots.
      score_BKR: attention received so far, float32; 0 in empty slots.
      position_BKR: absolute positions, int32; EMPTY in empty slots.
      heavy, recent: the budget, in keys per key/value head.
    """

    k_BKRH: jax.Array
    v_BKRH: jax.Array
    score_BKR: jax.Array
    position_BKR: jax.Array
    heavy: int
    recent: int


def keep_set(score_BKS: jax.Array, position_BKS: jax.Array, *, heavy: int, recent: int) -> jax.Array:
    """Chooses survivors: the `recent` newest, and of the rest the `heavy` with the highest scores.

    Args:
      score_BKS: float32.
      position_BKS: int32, distinct within a row; negative in empty slots, which never survive.
      heavy, recent: keys. recent is at least 1.
    Returns:
      keep_BKS, bool; at most heavy + recent true per row, all filled slots if there are no more than that.
    Raises:
      ValueError: heavy is negative or recent below 1.
    """
    if heavy < 0 or recent < 1:
        raise ValueError(f"heavy {heavy} and recent {recent}: at least 0 and at least 1")
    filled_BKS = position_BKS >= 0
    age_rank_BKS = _rank(-position_BKS)
    newest_BKS = filled_BKS & (age_rank_BKS < recent)
    # Equal scores: the lower position ranks first, so it is kept.
    worth_BKS = jnp.where(filled_BKS & ~newest_BKS, score_BKS, -jnp.inf)
    return newest_BKS | (filled_BKS & ~newest_BKS & (_rank(-worth_BKS, position_BKS) < heavy))


def compact(
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    score_BKS: jax.Array,
    position_BS: jax.Array,
    *,
    heavy: int,
    recent: int,
) -> Slab:
    """Gathers the survivors of a prompt into a slab, in the order of their positions.

    Args:
      k_BSKH, v_BSKH: the prompt's cache. score_BKS: its column sums. position_BS: negative where empty.
    """
    B, S, K, _ = k_BSKH.shape
    position_BKS = jnp.broadcast_to(position_BS[:, None], (B, K, S))
    keep_BKS = keep_set(score_BKS, position_BKS, heavy=heavy, recent=recent)
    far = jnp.iinfo(jnp.int32).max
    slots = heavy + recent + 1
    order_BKR = jnp.argsort(jnp.where(keep_BKS, position_BKS, far), axis=-1, stable=True)[:, :, :slots]
    order_BKR = jnp.pad(order_BKR, ((0, 0), (0, 0), (0, slots - order_BKR.shape[-1])))
    counted_BKR = jnp.arange(slots)[None, None] < jnp.sum(keep_BKS, axis=-1)[..., None]

    def take(x_BKSH: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BKSH, order_BKR[..., None], axis=2)

    return Slab(
        take(jnp.swapaxes(k_BSKH, 1, 2)),
        take(jnp.swapaxes(v_BSKH, 1, 2)),
        jnp.where(counted_BKR, jnp.take_along_axis(score_BKS, order_BKR, axis=2), 0),
        jnp.where(counted_BKR, jnp.take_along_axis(position_BKS, order_BKR, axis=2), EMPTY),
        heavy,
        recent,
    )


def append(slab: Slab, k_BKH: jax.Array, v_BKH: jax.Array, position_B: jax.Array) -> Slab:
    """Writes one new token per row to an empty slot, with score 0; in place if the slab is donated.

    A row with a negative position gets no token.
    """
    B, K, R = slab.position_BKR.shape
    slot_BK = jnp.argmax(slab.position_BKR < 0, axis=-1)
    at = jnp.arange(B)[:, None], jnp.arange(K)[None], jnp.where(position_B[:, None] < 0, R, slot_BK)
    return replace(
        slab,
        k_BKRH=slab.k_BKRH.at[at].set(k_BKH, mode="drop"),
        v_BKRH=slab.v_BKRH.at[at].set(v_BKH, mode="drop"),
        score_BKR=slab.score_BKR.at[at].set(0, mode="drop"),
        position_BKR=slab.position_BKR.at[at].set(position_B[:, None], mode="drop"),
    )


def attend(
    q_BNH: jax.Array,
    slab: Slab,
    position_B: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, Slab]:
    """Attends with one query per row; returns out_BNH and the slab with the weights added to its scores.

    Rows with a negative position see nothing: their output is 0, and they add no weights.
    """
    B, K, _, H = slab.k_BKRH.shape
    acc_dtype = accumulator_dtype(q_BNH.dtype)
    score = operands.ScoreTransform(H**-0.5 if scale is None else float(scale), softcap)
    q_BK1GH = q_BNH.reshape(B, K, 1, -1, H)
    age_BKR = position_B[:, None, None] - slab.position_BKR
    keep_BKR = (slab.position_BKR >= 0) & visible(age_BKR, None)
    raw_BK1GR = xla_tiles.raw_scores(q_BK1GH, slab.k_BKRH, acc_dtype)
    weight, top, total = xla_tiles.unnormalized_weights(raw_BK1GR, keep_BKR[:, :, None, None], score)
    v_BKRH = jnp.where(keep_BKR[..., None], slab.v_BKRH, 0)
    part = xla_tiles.PartialAttention(
        xla_tiles.sum_over_keys(weight.astype(v_BKRH.dtype), v_BKRH, acc_dtype), top, total
    )
    out_BK1GH, _ = xla_tiles.finalize(part)
    more_BKR = jnp.sum(weight / jnp.where(total > 0, total, 1), axis=(2, 3))
    out_BNH = out_BK1GH.reshape(B, -1, H).astype(q_BNH.dtype)
    return out_BNH, replace(slab, score_BKR=slab.score_BKR + more_BKR.astype(jnp.float32))


def evict(slab: Slab) -> Slab:
    """Empties one slot of every head that is over budget: the lowest score outside the `recent` newest.

    The positions of a request have no gaps, and the newest keys are never evicted, so the recent keys are
    those less than `recent` positions behind the newest.
    """
    filled_BKR = slab.position_BKR >= 0
    over_BK = jnp.sum(filled_BKR, axis=-1) > slab.heavy + slab.recent
    newest_BK1 = jnp.max(slab.position_BKR, axis=-1, keepdims=True)
    candidate_BKR = filled_BKR & ~visible(newest_BK1 - slab.position_BKR, slab.recent)
    worth_BKR = jnp.where(candidate_BKR, slab.score_BKR, jnp.inf)
    lowest_BKR = candidate_BKR & (worth_BKR == jnp.min(worth_BKR, axis=-1, keepdims=True))
    victim_BK = jnp.argmax(jnp.where(lowest_BKR, slab.position_BKR, -2), axis=-1)
    gone_BKR = (jnp.arange(filled_BKR.shape[-1])[None, None] == victim_BK[..., None]) & over_BK[..., None]
    return replace(
        slab,
        score_BKR=jnp.where(gone_BKR, 0, slab.score_BKR),
        position_BKR=jnp.where(gone_BKR, EMPTY, slab.position_BKR),
    )


def _rank(*keys_BKS: jax.Array) -> jax.Array:
    """Rank of each element in its row, sorted by the keys, the first key most significant."""
    order_BKS = jnp.lexsort(keys_BKS[::-1], axis=-1)
    return jnp.argsort(order_BKS, axis=-1)
