"""Eviction in the serving engine: slabs of fixed size stored as pages.

`PagedSlab` holds what survives of every slot's prompt; `slab_rows` decodes on it, `voting_pages` sums the
votes of a prompt and `settle` moves what survives of it. A slab's pages follow from its slot, so it needs no
table and no allocator; its keys lie in any order, contiguous from its first place on, so the kernels of
`paged.attend` read it as a row of `held` tokens, while rotation and sampling go by the true position.

Source: H2O (arXiv 2306.14048), algorithm 1. Axes: B rows, K key/value heads, H head size, R places of a slab,
Z slots.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mixattn.cache import narrow
from mixattn.keep import Scorer
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import heavy_hitter, paged
from pallas_kernels.heavy_hitter import Slab, SlabLimits
from pallas_kernels.heavy_hitter.slab import EMPTY
from pallas_kernels.paged import by_head


class SlabRules(NamedTuple):
    """What all slabs of an engine have in common; hashable, static under jit.

    Attributes:
      scorers: those compiled in; a slot names its own by its place.
      all_consumers: whether all layers that read a cache vote on its keys, or its owner alone.
      promote: whether the key that leaves the recent ones always replaces a heavy one.
      rolling: the model whose keys are rotated by their rank among the survivors; None = they keep positions.
    """

    scorers: tuple[Scorer, ...]
    all_consumers: bool
    promote: bool
    rolling: ModelConfig | None = None

    @property
    def votes(self) -> bool:
        """Whether some scorer reads queries."""
        return any(scorer.reads != 0 for scorer in self.scorers)

    @property
    def reads_every_query(self) -> bool:
        """Whether some scorer reads queries of a prompt before its last."""
        return any(scorer.reads not in (0, 1) for scorer in self.scorers)

    def listens(self, layer: Layer) -> bool:
        """Whether this layer's queries vote on the keys of its owner."""
        return not layer.slides and self.votes and (self.all_consumers or layer.owns)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedSlab:
    """What survives, of one owner and of every slot.

    Attributes:
      pool: slot z has pages 1 + z n to (z + 1) n, n = R / page size.
      score_ZKR, position_ZKR: float32 and int32; EMPTY = no key.
      limits_Z3: int32, each slot's heavy, recent and sinks.
    """

    pool: paged.Pool
    score_ZKR: jax.Array
    position_ZKR: jax.Array
    limits_Z3: jax.Array

    @classmethod
    def init(cls, config: ModelConfig, slots: int, keys: int, page_size: int, dtype: DTypeLike) -> Self:
        """Empty slabs with room for `keys` keys a head and the token that comes before each eviction."""
        n = -(-(keys + 1) // page_size)
        head = narrow.stored_head_dim(config.head_dim, dtype)
        shape = (slots, config.n_kv_heads, n * page_size)
        return cls(
            paged.init(1 + slots * n, page_size, config.n_kv_heads, head, dtype),
            jnp.zeros(shape, jnp.float32),
            jnp.full(shape, EMPTY, jnp.int32),
            jnp.zeros((slots, 3), jnp.int32),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, scores, positions and limits."""
        beside = (self.score_ZKR, self.position_ZKR, self.limits_Z3)
        return self.pool.nbytes + sum(x.size * x.dtype.itemsize for x in beside)

    @property
    def slab_pages(self) -> int:
        """Pages of one slab."""
        return self.score_ZKR.shape[-1] // self.pool.page_size

    def first_page(self, slot: jax.Array) -> jax.Array:
        """The first page of a slot's slab; an array of slots gives an array."""
        return 1 + slot * self.slab_pages

    def table(self, slot_B: jax.Array) -> jax.Array:
        """table_BP of these slots."""
        return self.first_page(slot_B)[:, None] + jnp.arange(self.slab_pages)[None]

    def of_rows(self, slot_B: jax.Array) -> Self:
        """The same pool with what lies beside it for these slots only."""
        if len(slot_B) == len(self.limits_Z3):
            return self
        beside = (self.score_ZKR, self.position_ZKR, self.limits_Z3)
        return type(self)(self.pool, *(x.at[slot_B].get(mode="clip") for x in beside))

    def with_rows(self, slot_B: jax.Array, rows: Self) -> Self:
        """These slabs after a step of `rows`; a slot that does not exist is dropped."""
        if len(slot_B) == len(self.limits_Z3):
            return rows
        score_ZKR = self.score_ZKR.at[slot_B].set(rows.score_ZKR, mode="drop")
        position_ZKR = self.position_ZKR.at[slot_B].set(rows.position_ZKR, mode="drop")
        return type(self)(rows.pool, score_ZKR, position_ZKR, self.limits_Z3)

    # ---- a step of its rows ----

    def held(self) -> jax.Array:
        """Keys that each row holds; all heads hold as many."""
        return jnp.sum(self.position_ZKR[:, 0] >= 0, axis=-1, dtype=jnp.int32)

    def write(
        self, slot_B: jax.Array, position_B: jax.Array, live_B: jax.Array, k_BKH: jax.Array, v_BKH: jax.Array
    ) -> Self:
        """Puts one token a row into each head's first empty place: that of its last victim, if it had one."""
        place_BK = jnp.argmax(self.position_ZKR < 0, axis=-1)
        t = self.pool.page_size
        page_BK = self.first_page(slot_B)[:, None] + place_BK // t
        page_BK = jnp.where(live_B[:, None], page_BK, self.pool.pages)
        k_BKH, v_BKH = (narrow.narrowed(x, self.pool.values.dtype) for x in (k_BKH, v_BKH))
        here_BKR = jnp.arange(self.position_ZKR.shape[-1])[None, None] == place_BK[..., None]
        here_BKR &= live_B[:, None, None]
        return dataclasses.replace(
            self,
            pool=by_head.write(self.pool, k_BKH, v_BKH, page_BK, place_BK % t),
            score_ZKR=jnp.where(here_BKR, 0, self.score_ZKR),
            position_ZKR=jnp.where(here_BKR, position_B[:, None, None], self.position_ZKR),
        )

    def in_order(self, live_B: jax.Array, tokens_B: jax.Array) -> Self:
        """The slabs after steps of live rows that hold all of their `tokens_B` tokens, in order."""
        at_11R = jnp.arange(self.position_ZKR.shape[-1])[None, None]
        position_B1R = jnp.where(at_11R < tokens_B[:, None, None], at_11R, EMPTY)
        position_ZKR = jnp.where(live_B[:, None, None], position_B1R, self.position_ZKR)
        return dataclasses.replace(self, position_ZKR=position_ZKR)

    def evicted(
        self, owner: int, rules: SlabRules, rows: "ScoredRows", weights_BKR: jax.Array | None
    ) -> Self:
        """The slab after the last layer of a step has read it: new scores, and a victim where it is over."""
        score_BKR, (keys, _) = self.score_ZKR, self.keys_values(rows.slot_B)
        worth_BKR = score_BKR
        for number, scorer in enumerate(rules.scorers):
            mine_B11 = (rows.scorer_B == number)[:, None, None]
            if weights_BKR is not None:
                score_BKR = jnp.where(mine_B11, scorer.stepped(self.score_ZKR, weights_BKR), score_BKR)
            worth = scorer.worth(score_BKR, keys, self.position_ZKR, owner)
            worth_BKR = jnp.where(mine_B11, worth, worth_BKR)
        limits = SlabLimits(*(self.limits_Z3[:, i] for i in range(3)))
        unused = jnp.zeros(0)
        slab = Slab(unused, unused, score_BKR, self.position_ZKR, limits)
        slab = heavy_hitter.evict(slab, worth_BKR, promote=rules.promote)
        live_B11 = rows.live_B[:, None, None]
        return dataclasses.replace(
            self,
            score_ZKR=jnp.where(live_B11, slab.score_BKR, self.score_ZKR),
            position_ZKR=jnp.where(live_B11, slab.position_BKR, self.position_ZKR),
        )

    def keys_values(self, slot_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """k_BKRH and v_BKRH in float32, copied; what nobody reads is never computed."""

        def by_head_and_place(x_BPtKH: jax.Array) -> jax.Array:
            B, P, t, K, _ = x_BPtKH.shape
            return narrow.widened(jnp.moveaxis(x_BPtKH, 3, 1).reshape(B, K, P * t, -1), jnp.float32)

        k, v = paged.read(self.pool, self.table(slot_B))
        return by_head_and_place(k), by_head_and_place(v)


class ScoredRows(NamedTuple):
    """Rows of a decode step: their slots, their scorers by number, and which of them take part."""

    slot_B: jax.Array
    scorer_B: jax.Array
    live_B: jax.Array
