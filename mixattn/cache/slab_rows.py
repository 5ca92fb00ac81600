"""Decoding on slabs: rows that evict, and rows that never will.

Axes: B rows, T tokens, N query heads, K key/value heads, H head size, R places of a slab.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Self

import jax
import jax.numpy as jnp

from mixattn.cache import narrow
from mixattn.cache.kept import rolled_keys
from mixattn.cache.kept_pages import PagedSlab, ScoredRows, SlabRules
from mixattn.cache.paged import FULL, Paged
from mixattn.spec import Layer
from pallas_kernels import heavy_hitter, paged
from pallas_kernels.heavy_hitter import Slab, SlabLimits


@dataclass(frozen=True)
class SlabStep:
    """What decode steps on slabs have in common.

    Attributes:
      slabs: full owner -> its slabs, of these rows.
      pages: the sliding owners' pages, and each row's true position and count.
      slot_B: of the rows.
    """

    slabs: dict[int, PagedSlab]
    pages: Paged
    slot_B: jax.Array

    def positions(self, T: int) -> jax.Array:
        return self.pages.positions(T)

    def reads_every_query(self, layer: Layer) -> bool:
        return False

    def at_last(self, T: int) -> Self:
        return self

    def after_view(self, view: Self) -> Self:
        return view

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return self.pages.select_last(x_BTD)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlabRows(SlabStep):
    """One decode step of settled rows; a `Cache`.

    Attributes:
      scorer_B: of the rows.
      rules: static.
      weights: owner -> what this step's queries gave each key so far, [B, K, R].
    """

    scorer_B: jax.Array
    rules: SlabRules = field(metadata={"static": True})
    weights: dict[int, jax.Array] = field(default_factory=dict)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        if layer.slides:
            return dataclasses.replace(self, pages=self.pages.write(layer, k_BTKH, v_BTKH))
        slab = self.slabs[layer.index].write(
            self.slot_B, self.pages.start_B, self._live_B, k_BTKH[:, 0], v_BTKH[:, 0]
        )
        return dataclasses.replace(self, slabs={**self.slabs, layer.index: slab})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        if layer.slides:
            return self.pages.attend(layer, q_BTNH, scale=scale, softcap=softcap)[0], self
        slab = self.slabs[layer.owner]
        pool = narrow.readable(slab.pool, q_BTNH.dtype)
        # The token itself is written: it is the last of the row's places that are in use.
        held_B = jnp.maximum(slab.held() - 1, 0)
        listens = self.rules.listens(layer)
        if self.rules.rolling is not None:
            return self._attend_rolling(layer, slab, q_BTNH, scale, softcap)
        got = paged.attend(
            q_BTNH.astype(pool.values.dtype),
            pool,
            slab.table(self.slot_B),
            held_B,
            self.pages.count_B,
            scale=scale,
            softcap=softcap,
            return_weights=listens,
            unshared=True,
        )
        if not listens:
            assert isinstance(got, jax.Array)
            return got.astype(q_BTNH.dtype), self
        out_BTNH, weights_B1NR = got
        B, _, N, R = weights_B1NR.shape
        K = pool.n_kv_heads
        more_BKR = jnp.sum(weights_B1NR.reshape(B, K, N // K, R), axis=2).astype(jnp.float32)
        return out_BTNH.astype(q_BTNH.dtype), self._heard(layer, more_BKR)

    def _attend_rolling(
        self, layer: Layer, slab: PagedSlab, q_BTNH: jax.Array, scale: float | None, softcap: float | None
    ) -> tuple[jax.Array, Self]:
        """Over copies of the keys, rotated on to consecutive positions."""
        assert self.rules.rolling is not None
        k_BKRH, v_BKRH = slab.keys_values(self.slot_B)
        k_BKRH, v_BKRH = (x.astype(q_BTNH.dtype) for x in (k_BKRH, v_BKRH))
        limits = SlabLimits(0, 1)
        rows = Slab(k_BKRH, v_BKRH, slab.score_ZKR, slab.position_ZKR, limits)
        position_B = jnp.where(self._live_B, self.pages.start_B, -1)
        out_BNH, more_BKR = heavy_hitter.attend_weights(
            q_BTNH[:, 0],
            rows,
            position_B,
            k_BKRH=rolled_keys(k_BKRH, slab.position_ZKR, self.rules.rolling),
            scale=scale,
            softcap=softcap,
        )
        return out_BNH[:, None], self._heard(layer, more_BKR)

    def _heard(self, layer: Layer, more_BKR: jax.Array) -> Self:
        if not self.rules.listens(layer):
            return self
        before = self.weights.get(layer.owner)
        more_BKR = more_BKR if before is None else before + more_BKR
        return dataclasses.replace(self, weights={**self.weights, layer.owner: more_BKR})

    def advance(self, T: int) -> Self:
        """Evicts what this step put over a row's budget, after the last layer has read it."""
        rows = ScoredRows(self.slot_B, self.scorer_B, self._live_B)
        slabs = {
            owner: slab.evicted(owner, self.rules, rows, self.weights.get(owner))
            for owner, slab in self.slabs.items()
        }
        return dataclasses.replace(self, slabs=slabs, pages=self.pages.advance(T), weights={})

    @property
    def _live_B(self) -> jax.Array:
        return self.pages.count_B > 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactRows(SlabStep):
    """One decode step of settled rows that never evict; a `Cache`.

    Such a row lies in its slab in order of position, so a slab is read and written as a row of pages: nothing
    votes, nobody is looked for, and every bit is that of a row in full pages.
    """

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        if layer.slides:
            return dataclasses.replace(self, pages=self.pages.write(layer, k_BTKH, v_BTKH))
        slab = self.slabs[layer.index]
        pool = FULL.write(slab.pool, *self._row_of(slab), k_BTKH, v_BTKH)
        slab = dataclasses.replace(slab, pool=pool)
        return dataclasses.replace(self, slabs={**self.slabs, layer.index: slab})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        if layer.slides:
            return self.pages.attend(layer, q_BTNH, scale=scale, softcap=softcap)[0], self
        slab = self.slabs[layer.owner]
        row = self._row_of(slab)
        out_BTNH = FULL.attend(slab.pool, *row, layer, q_BTNH, scale=scale, softcap=softcap, unshared=True)
        return out_BTNH, self

    def advance(self, T: int) -> Self:
        return dataclasses.replace(self, pages=self.pages.advance(T))

    def _row_of(self, slab: PagedSlab) -> tuple[jax.Array, jax.Array, jax.Array]:
        return slab.table(self.slot_B), self.pages.start_B, self.pages.count_B
