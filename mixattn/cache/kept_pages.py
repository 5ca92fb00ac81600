"""Eviction in the serving engine: slabs of fixed size stored as pages, and votes on the keys of a prompt.

`VotingPages` is a step of prompts: pages as always, and the attention that each key receives from the chunk,
summed. `PagedSlab` holds what survives of every slot's prompt and `SlabRows` decodes on it. A slab's pages
follow from its slot, so it needs no table and no allocator; its keys lie in any order, contiguous from its
first place on, so the kernels of `paged.attend` read it as a row of `held` tokens, while rotation and
sampling go by the true position.

Source: H2O (arXiv 2306.14048), algorithm 1. Axes: B rows, T tokens, N query heads, K key/value heads, H head
size, S positions of a page table, R places of a slab, Z slots.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mixattn.cache import narrow
from mixattn.cache.kept import rolled_keys
from mixattn.cache.paged import FULL, Paged
from mixattn.keep import Scorer
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import heavy_hitter, paged
from pallas_kernels.heavy_hitter import Slab, SlabLimits
from pallas_kernels.heavy_hitter.slab import EMPTY
from pallas_kernels.paged import by_head
from pallas_kernels.paged_votes import column_sums


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlabRows:
    """One decode step of settled rows; a `Cache`.

    Attributes:
      slabs: full owner -> its slabs, of these rows.
      pages: the sliding owners' pages, and each row's true position and count.
      slot_B, scorer_B: of the rows.
      rules: static.
      weights: owner -> what this step's queries gave each key so far, [B, K, R].
    """

    slabs: dict[int, PagedSlab]
    pages: Paged
    slot_B: jax.Array
    scorer_B: jax.Array
    rules: SlabRules = field(metadata={"static": True})
    weights: dict[int, jax.Array] = field(default_factory=dict)

    def positions(self, T: int) -> jax.Array:
        return self.pages.positions(T)

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

    def reads_every_query(self, layer: Layer) -> bool:
        return False

    def at_last(self, T: int) -> Self:
        return self

    def after_view(self, view: Self) -> Self:
        return view

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return self.pages.select_last(x_BTD)

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
class VotingPages:
    """One step of prompt chunks whose queries vote on the keys before them; a `Cache`.

    Attributes:
      pages: the pages of all owners.
      first_B: each row's first position whose query votes.
      rules: static.
      votes: owner -> what this chunk's queries gave each key so far, [B, K, S].
    """

    pages: Paged
    first_B: jax.Array
    rules: SlabRules = field(metadata={"static": True})
    votes: dict[int, jax.Array] = field(default_factory=dict)

    def positions(self, T: int) -> jax.Array:
        return self.pages.positions(T)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        return dataclasses.replace(self, pages=self.pages.write(layer, k_BTKH, v_BTKH))

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        if not self.rules.listens(layer):
            return self.pages.attend(layer, q_BTNH, scale=scale, softcap=softcap)[0], self
        pages = self.pages
        pool = narrow.readable(pages.pools[layer.owner], q_BTNH.dtype)
        q = q_BTNH.astype(pool.values.dtype)
        row = (pages.tables[FULL.name], pages.start_B, pages.count_B)
        out_BTNH, lse_BTN = paged.attend(q, pool, *row, scale=scale, softcap=softcap, return_lse=True)

        def summed(_: None) -> jax.Array:
            return column_sums(q, pool, *row, lse_BTN, first_B=self.first_B, scale=scale, softcap=softcap)

        def nothing(_: None) -> jax.Array:
            B, P = row[0].shape
            return jnp.zeros((B, pool.n_kv_heads, P * pool.page_size), jnp.float32)

        votes = (pages.count_B > 0) & (pages.start_B + pages.count_B > self.first_B)
        more_BKS = jax.lax.cond(jnp.any(votes), summed, nothing, None)
        before = self.votes.get(layer.owner)
        more_BKS = more_BKS if before is None else before + more_BKS
        heard = dataclasses.replace(self, votes={**self.votes, layer.owner: more_BKS})
        return out_BTNH.astype(q_BTNH.dtype), heard

    def reads_every_query(self, layer: Layer) -> bool:
        return self.rules.reads_every_query and self.rules.listens(layer)

    def at_last(self, T: int) -> Self:
        return dataclasses.replace(self, pages=self.pages.at_last(T))

    def after_view(self, view: Self) -> Self:
        return dataclasses.replace(self, votes=view.votes)

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return self.pages.select_last(x_BTD)

    def advance(self, T: int) -> Self:
        return dataclasses.replace(self, pages=self.pages.advance(T))


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
