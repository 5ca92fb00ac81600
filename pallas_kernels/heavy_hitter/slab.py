"""A cache of fixed size with one eviction per step: the decode side of H2O.

For each key/value head separately, a slab holds the first `sinks` keys of a request, its `recent` newest, and
of those between the `heavy` ones of highest score. It has one slot more, since a new token enters before the
eviction of its step. The order of slots has no meaning. The budget may differ by row.
"""

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention import operands, xla_tiles
from pallas_kernels.masks import visible
from pallas_kernels.typing import accumulator_dtype

EMPTY = -1
type PerRow = int | jax.Array  # one number for all rows, or int32 [B]


class SlabLimits(NamedTuple):
    """The budget of a row, in keys per key/value head: `sinks` + `heavy` + `recent`.

    Attributes:
      heavy: keys chosen by their scores.
      recent: newest keys, never evicted; at least 1.
      sinks: positions from 0 on that are never evicted.
    """

    heavy: PerRow
    recent: PerRow
    sinks: PerRow = 0

    @property
    def total(self) -> PerRow:
        """Keys that a row may hold after a step."""
        return self.heavy + self.recent + self.sinks

    def check(self) -> None:
        """Raises ValueError where a number known now is out of range."""
        for name, value, least in (
            ("heavy", self.heavy, 0),
            ("recent", self.recent, 1),
            ("sinks", self.sinks, 0),
        ):
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} is {value} keys; at least {least} are needed")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["k_BKRH", "v_BKRH", "score_BKR", "position_BKR", "limits"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Slab:
    """The surviving keys of a batch of requests.

    Attributes:
      k_BKRH, v_BKRH: keys (already rotated) and values; stale in empty slots.
      score_BKR: attention received so far, float32; 0 in empty slots.
      position_BKR: absolute positions, int32; EMPTY in empty slots.
      limits: the budget.
    """

    k_BKRH: jax.Array
    v_BKRH: jax.Array
    score_BKR: jax.Array
    position_BKR: jax.Array
    limits: SlabLimits


def keep_set(
    score_BKS: jax.Array, position_BKS: jax.Array, *, heavy: PerRow, recent: PerRow, sinks: PerRow = 0
) -> jax.Array:
    """Chooses survivors: the first `sinks`, the `recent` newest, and of the rest the `heavy` with the highest
    scores.

    Args:
      score_BKS: float32.
      position_BKS: int32, distinct within a row; negative in empty slots, which never survive.
      heavy, recent, sinks: see `SlabLimits`.
    Returns:
      keep_BKS, bool; all filled slots if there are no more than the budget.
    Raises:
      ValueError: heavy or sinks is negative, or recent below 1.
    """
    limits = SlabLimits(heavy, recent, sinks)
    limits.check()
    filled_BKS = position_BKS >= 0
    newest_BKS = filled_BKS & (_rank(-position_BKS) < _column(recent))
    held_BKS = newest_BKS | (filled_BKS & (position_BKS < _column(sinks)))
    # Equal scores: the lower position ranks first, so it is kept.
    worth_BKS = jnp.where(filled_BKS & ~held_BKS, score_BKS, -jnp.inf)
    return held_BKS | (filled_BKS & ~held_BKS & (_rank(-worth_BKS, position_BKS) < _column(heavy)))


def compact(
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    score_BKS: jax.Array,
    position_BS: jax.Array,
    *,
    heavy: PerRow,
    recent: PerRow,
    sinks: PerRow = 0,
    slots: int = 0,
    worth_BKS: jax.Array | None = None,
) -> Slab:
    """Gathers the survivors of a prompt into a slab, in the order of their positions.

    Args:
      k_BSKH, v_BSKH: the prompt's cache. score_BKS: its column sums. position_BS: negative where empty.
      slots: slots of the slab; 0 = one more than the budget, which must then be the same for all rows.
      worth_BKS: what ranks the keys, if not their scores.
    """
    B, S, K, _ = k_BSKH.shape
    limits = SlabLimits(heavy, recent, sinks)
    position_BKS = jnp.broadcast_to(position_BS[:, None], (B, K, S))
    worth_BKS = score_BKS if worth_BKS is None else worth_BKS
    keep_BKS = keep_set(worth_BKS, position_BKS, heavy=heavy, recent=recent, sinks=sinks)
    far = jnp.iinfo(jnp.int32).max
    slots = slots or int(limits.total) + 1
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
        limits,
    )


def append(slab: Slab, k_BTKH: jax.Array, v_BTKH: jax.Array, position_BT: jax.Array) -> Slab:
    """Writes new tokens to empty slots, with score 0; in place if the slab is donated.

    Args:
      k_BTKH, v_BTKH: or [B, K, H] and position [B], for one token per row.
      position_BT: negative = no token. A row must have as many empty slots as it gets tokens.
    """
    if k_BTKH.ndim == 3:
        return append(slab, k_BTKH[:, None], v_BTKH[:, None], position_BT[:, None])
    B, K, R = slab.position_BKR.shape
    T = k_BTKH.shape[1]
    if T == 1:
        slot_BKT = jnp.argmax(slab.position_BKR < 0, axis=-1)[..., None]
    else:
        slot_BKT = jnp.argsort(slab.position_BKR >= 0, axis=-1, stable=True)[..., :T]
    position_B1T = position_BT[:, None]
    at = (
        jnp.arange(B)[:, None, None],
        jnp.arange(K)[None, :, None],
        jnp.where(position_B1T < 0, R, slot_BKT),
    )
    return replace(
        slab,
        k_BKRH=slab.k_BKRH.at[at].set(jnp.swapaxes(k_BTKH, 1, 2), mode="drop"),
        v_BKRH=slab.v_BKRH.at[at].set(jnp.swapaxes(v_BTKH, 1, 2), mode="drop"),
        score_BKR=slab.score_BKR.at[at].set(0, mode="drop"),
        position_BKR=slab.position_BKR.at[at].set(position_B1T, mode="drop"),
    )


def attend_weights(
    q_BNH: jax.Array,
    slab: Slab,
    position_B: jax.Array,
    *,
    k_BKRH: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attends with one query per row.

    Rows with a negative position see nothing: their output is 0, and so are their weights.

    Args:
      k_BKRH: keys in place of the slab's, where they are rotated to other positions.

    Returns:
      out_BNH, and weights_BKR, float32: the attention of this query, summed over the heads that share a key.
    """
    B, K, _, H = slab.k_BKRH.shape
    acc_dtype = accumulator_dtype(q_BNH.dtype)
    score = operands.ScoreTransform(H**-0.5 if scale is None else float(scale), softcap)
    q_BK1GH = q_BNH.reshape(B, K, 1, -1, H)
    age_BKR = position_B[:, None, None] - slab.position_BKR
    keep_BKR = (slab.position_BKR >= 0) & visible(age_BKR, None)
    raw_BK1GR = xla_tiles.raw_scores(q_BK1GH, slab.k_BKRH if k_BKRH is None else k_BKRH, acc_dtype)
    weight, top, total = xla_tiles.unnormalized_weights(raw_BK1GR, keep_BKR[:, :, None, None], score)
    v_BKRH = jnp.where(keep_BKR[..., None], slab.v_BKRH, 0)
    part = xla_tiles.PartialAttention(
        xla_tiles.sum_over_keys(weight.astype(v_BKRH.dtype), v_BKRH, acc_dtype), top, total
    )
    out_BK1GH, _ = xla_tiles.finalize(part)
    weights_BKR = jnp.sum(weight / jnp.where(total > 0, total, 1), axis=(2, 3))
    return out_BK1GH.reshape(B, -1, H).astype(q_BNH.dtype), weights_BKR.astype(jnp.float32)


def attend(
    q_BNH: jax.Array,
    slab: Slab,
    position_B: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, Slab]:
    """As `attend_weights`, but returns the slab with the weights added to its scores."""
    out_BNH, weights_BKR = attend_weights(q_BNH, slab, position_B, scale=scale, softcap=softcap)
    return out_BNH, replace(slab, score_BKR=slab.score_BKR + weights_BKR)


def evict(slab: Slab, worth_BKR: jax.Array | None = None, *, promote: bool = False) -> Slab:
    """Empties one slot of every head that is over budget: the lowest score outside sinks and recent keys.

    The positions of a request have no gaps, and the newest keys are never evicted, so the recent keys are
    those less than `recent` positions behind the newest.

    Args:
      worth_BKR: what ranks the keys, if not their scores.
      promote: the key that leaves the recent ones always takes the place of a heavy one (if there is any), as
        in the throughput code of the authors; otherwise it competes by its score.
    """
    limits = slab.limits
    filled_BKR = slab.position_BKR >= 0
    over_BK = jnp.sum(filled_BKR, axis=-1) > _column(limits.total)[..., 0]
    age_BKR = jnp.max(slab.position_BKR, axis=-1, keepdims=True) - slab.position_BKR
    candidate_BKR = filled_BKR & (age_BKR >= _column(limits.recent))
    candidate_BKR &= slab.position_BKR >= _column(limits.sinks)
    if promote:
        older_BKR = candidate_BKR & (age_BKR > _column(limits.recent))
        candidate_BKR = jnp.where(jnp.any(older_BKR, axis=-1, keepdims=True), older_BKR, candidate_BKR)
    worth_BKR = slab.score_BKR if worth_BKR is None else worth_BKR
    worth_BKR = jnp.where(candidate_BKR, worth_BKR, jnp.inf)
    lowest_BKR = candidate_BKR & (worth_BKR == jnp.min(worth_BKR, axis=-1, keepdims=True))
    victim_BK = jnp.argmax(jnp.where(lowest_BKR, slab.position_BKR, -2), axis=-1)
    gone_BKR = (jnp.arange(filled_BKR.shape[-1])[None, None] == victim_BK[..., None]) & over_BK[..., None]
    return emptied(slab, gone_BKR)


def emptied(slab: Slab, gone_BKR: jax.Array) -> Slab:
    """The slab without the keys in these slots."""
    return replace(
        slab,
        score_BKR=jnp.where(gone_BKR, 0, slab.score_BKR),
        position_BKR=jnp.where(gone_BKR, EMPTY, slab.position_BKR),
    )


def _column(limit: PerRow) -> jax.Array:
    """[B or 1, 1, 1]."""
    return jnp.reshape(jnp.asarray(limit, jnp.int32), (-1, 1, 1))


def _rank(*keys_BKS: jax.Array) -> jax.Array:
    """Rank of each element in its row, sorted by the keys, the first key most significant."""
    order_BKS = jnp.lexsort(keys_BKS[::-1], axis=-1)
    return jnp.argsort(order_BKS, axis=-1)
