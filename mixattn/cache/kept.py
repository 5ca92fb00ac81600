"""A cache that evicts: each owner with full attention keeps what a `mixattn.keep.Keep` says; windows stay
windows.

The prompt is computed with full attention while its layers' queries vote on the keys; then each owner's keys
are cut to its budget, and every step evicts what it put over. Outputs of a prompt are those of a full cache,
so the first token does not depend on the budget. With `prefill="blockwise"` the prompt comes in steps of
several tokens, each cut after it.

Source: H2O (arXiv 2306.14048), algorithm 1; scorers name their own. Axes: B rows, T tokens, N query heads, K
key/value heads, H head size, S keys, R slots.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mixattn.cache.contiguous import Ring
from mixattn.cache.protocol import KV, select_token, step_positions
from mixattn.keep import Keep, Scorer
from mixattn.keep.scorers.expected import rotation
from mixattn.keep.scorers.protocol import ALL, Prompt
from mixattn.rope import apply_rope
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import heavy_hitter
from pallas_kernels.attention import attention
from pallas_kernels.heavy_hitter import Slab, SlabLimits
from pallas_kernels.heavy_hitter.block import attend_block


@dataclass(frozen=True)
class KeptBy:
    """Makes `Kept` caches of one `Keep`; takes the place of a cache class. Static under jit.

    Attributes:
      keep: the budget and the scorer.
      prompt: the longest prompt, in tokens, after padding.
      new: tokens that a row generates, for shares of the total; padding: slots for more than that.
      step: the most tokens that a step brings after the prompt.
    """

    keep: Keep
    prompt: int
    new: int = 0
    padding: int = 0
    step: int = 1

    def with_step(self, tokens: int) -> Self:
        """For steps of at most `tokens` tokens, which a growing cache keeps."""
        grows = tokens if self.keep.when == "prompt" else 0
        return dataclasses.replace(self, step=tokens, padding=self.padding + grows)

    def init(
        self, config: ModelConfig, batch: int, capacity: int, *, dtype: DTypeLike | None = None
    ) -> "Kept":
        """`batch` empty rows; the budget bounds them, not `capacity`."""
        check_model(self.keep, config)
        slabs, owners = {}, full_owners(config)
        for index, owner in enumerate(owners):
            new = self.new + self.padding
            slots = self.keep.slots(self.prompt, new, index, len(owners)) + self.step - 1
            shape = (batch, config.n_kv_heads, slots)
            kv = jnp.zeros((*shape, config.head_dim), dtype or config.dtype)
            position = jnp.full(shape, heavy_hitter.slab.EMPTY, jnp.int32)
            limits = SlabLimits(*(jnp.zeros(batch, jnp.int32),) * 3)
            slabs[owner] = Slab(kv, kv, jnp.zeros(shape, jnp.float32), position, limits)
        windows = Ring.init(config, batch, capacity, dtype=dtype)
        sliding = {owner: pair for owner, pair in windows.kv.items() if owner not in slabs}
        return Kept(
            slabs, dataclasses.replace(windows, kv=sliding), jnp.zeros(batch, jnp.int32), self, config
        )


@dataclass(frozen=True)
class Kept:
    """The surviving keys of each row; `KeptBy` makes it.

    Attributes:
      slabs: full owner -> its surviving keys.
      windows: the sliding owners' cache.
      start_B, count_B: tokens before this step, and this step's real tokens (None = all).
      fresh: owner -> the prompt's k_BTKH, v_BTKH before the first cut.
      votes: owner -> what this step's queries gave each key so far: [B, K, S] of the prompt, or [B, K, R].
      by, config, empty: static; `empty`: nothing is held yet.
    """

    slabs: dict[int, Slab]
    windows: Ring
    start_B: jax.Array
    by: KeptBy
    config: ModelConfig
    count_B: jax.Array | None = None
    query_B: jax.Array | None = None
    fresh: dict[int, KV] = field(default_factory=dict)
    votes: dict[int, jax.Array] = field(default_factory=dict)
    empty: bool = True

    @property
    def keep(self) -> Keep:
        return self.by.keep

    @property
    def scorer(self) -> Scorer:
        return self.keep.ranking

    def with_counts(self, count_B: jax.Array | None) -> Self:
        return dataclasses.replace(self, count_B=count_B, windows=self.windows.with_counts(count_B))

    def for_prompts(self, count_B: jax.Array, T: int) -> tuple[Self, int]:
        if self.keep.prefill == "exact":
            return self, T
        slabs = {
            owner: dataclasses.replace(slab, limits=self._limits(index, count_B))
            for index, (owner, slab) in enumerate(self.slabs.items())
        }
        return dataclasses.replace(self, slabs=slabs, empty=False), self.keep.block

    def nbytes(self) -> dict[int, int]:
        """Bytes of keys, values, scores and positions by owner, over all rows."""
        slabs = {
            owner: sum(x.nbytes for x in (s.k_BKRH, s.v_BKRH, s.score_BKR, s.position_BKR))
            for owner, s in self.slabs.items()
        }
        return slabs | self.windows.nbytes()

    def positions(self, T: int) -> jax.Array:
        return step_positions(self.start_B if self.query_B is None else self.query_B, T)

    def reads_every_query(self, layer: Layer) -> bool:
        """Whether the scores of a prompt need queries of this layer before the last one's."""
        return self._votes_of(layer) and self.scorer.reads not in (0, 1)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        owner = layer.index
        if owner not in self.slabs:
            return dataclasses.replace(self, windows=self.windows.write(layer, k_BTKH, v_BTKH))
        if self.empty:
            return dataclasses.replace(self, fresh={**self.fresh, owner: (k_BTKH, v_BTKH)})
        position_BT = self._real_positions(k_BTKH.shape[1])
        slab = heavy_hitter.append(self.slabs[owner], k_BTKH, v_BTKH, position_BT)
        return dataclasses.replace(self, slabs={**self.slabs, owner: slab})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        if layer.owner not in self.slabs:
            out_BTNH, windows = self.windows.attend(layer, q_BTNH, scale=scale, softcap=softcap)
            return out_BTNH, dataclasses.replace(self, windows=windows)
        options: dict[str, Any] = {"scale": scale, "softcap": softcap}
        if self.empty:
            return self._attend_prompt(layer, q_BTNH, options)
        slab, T = self.slabs[layer.owner], q_BTNH.shape[1]
        position_BT = self._real_positions(T)
        if self.query_B is not None:
            position_BT = jnp.where(self._count_B(1) > 0, self.query_B, -1)[:, None]
        keys = self._rolled(slab) if self.keep.positions == "rolling" else slab.k_BKRH
        if T > 1:
            out_BTNH, more_BKR = attend_block(
                q_BTNH, slab, position_BT, voting_BT=self._voting(position_BT), **options
            )
        else:
            out_BNH, more_BKR = heavy_hitter.attend_weights(
                q_BTNH[:, 0], slab, position_BT[:, 0], k_BKRH=keys, **options
            )
            out_BTNH = out_BNH[:, None]
        return out_BTNH, self._with_votes(layer, more_BKR)

    def _attend_prompt(
        self, layer: Layer, q_BTNH: jax.Array, options: dict[str, Any]
    ) -> tuple[jax.Array, Self]:
        k_BSKH, v_BSKH = self.fresh[layer.owner]
        T, S = q_BTNH.shape[1], k_BSKH.shape[1]
        k_pos_BS, q_pos_BT = self._real_positions(S), self.positions(T)
        where: dict[str, Any] = {} if self.query_B is None else {"q_pos_BT": q_pos_BT, "k_pos_BS": k_pos_BS}
        if not self._votes_of(layer):
            return attention(q_BTNH, k_BSKH, v_BSKH, **where, **options), self
        out_BTNH, lse_BTN = attention(q_BTNH, k_BSKH, v_BSKH, return_lse=True, **where, **options)
        if self.query_B is None:  # padding on the right must not vote on real keys
            q_pos_BT = k_pos_BS
        view = Prompt(q_BTNH, lse_BTN, q_pos_BT, k_BSKH, v_BSKH, k_pos_BS, **options, config=self.config)
        return out_BTNH, self._with_votes(layer, self.scorer.votes(self._last_queries(view)))

    def voted(
        self, layer: Layer, q_BTNH: jax.Array, lse_BTN: jax.Array, kv: KV, options: dict[str, Any]
    ) -> Self:
        """The empty cache with what a prompt without padding says of the keys kv."""
        position_BT = self._real_positions(q_BTNH.shape[1])
        view = Prompt(q_BTNH, lse_BTN, position_BT, *kv, position_BT, **options, config=self.config)
        return self._with_votes(layer, self.scorer.votes(self._last_queries(view)))

    def _last_queries(self, view: Prompt) -> Prompt:
        """The view with only the queries that the scorer reads."""
        reads, T = self.scorer.reads, view.q_BTNH.shape[1]
        if reads == ALL or reads >= T:
            return view
        count_B1 = jnp.sum(view.q_pos_BT >= 0, axis=1, keepdims=True)
        index_Bw = count_B1 - reads + jnp.arange(reads)[None]
        at_Bw = jnp.maximum(index_Bw, 0)
        return view._replace(
            q_BTNH=jnp.take_along_axis(view.q_BTNH, at_Bw[..., None, None], axis=1),
            lse_BTN=jnp.take_along_axis(view.lse_BTN, at_Bw[..., None], axis=1),
            q_pos_BT=jnp.where(index_Bw < 0, -1, jnp.take_along_axis(view.q_pos_BT, at_Bw, axis=1)),
        )

    def _voting(self, position_BT: jax.Array) -> jax.Array:
        """Of a block's queries, those that the scorer reads: of a scorer of one query, the last."""
        if self.scorer.reads == 1:
            return position_BT == jnp.max(position_BT, axis=1, keepdims=True)
        return jnp.full_like(position_BT, True, dtype=bool)

    def _votes_of(self, layer: Layer) -> bool:
        scored = layer.owner in self.slabs and self.scorer.reads != 0
        return scored and (self.keep.scope == "all_consumers" or layer.owns)

    def _with_votes(self, layer: Layer, more: jax.Array) -> Self:
        if not self._votes_of(layer):
            return self
        before = self.votes.get(layer.owner)
        more = more if before is None else before + more
        return dataclasses.replace(self, votes={**self.votes, layer.owner: more})

    def _rolled(self, slab: Slab) -> jax.Array:
        return rolled_keys(slab.k_BKRH, slab.position_BKR, self.config)

    def at_last(self, T: int) -> Self:
        query_B = self.start_B + jnp.maximum(self._count_B(T) - 1, 0)
        return dataclasses.replace(self, query_B=query_B, windows=self.windows.at_last(T))

    def after_view(self, view: Self) -> Self:
        return dataclasses.replace(self, votes=view.votes)

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return select_token(x_BTD, self._count_B(x_BTD.shape[1]) - 1)

    def advance(self, T: int) -> Self:
        """Cuts the prompt to the budget, or evicts what this step put over it."""
        cut = self._settled if self.empty else self._stepped
        return dataclasses.replace(
            self,
            slabs={owner: cut(index, owner, T) for index, owner in enumerate(self.slabs)},
            windows=self.windows.advance(T),
            start_B=self.start_B + self._count_B(T),
            fresh={},
            votes={},
            query_B=None,
            empty=False,
        )

    def _settled(self, index: int, owner: int, T: int) -> Slab:
        (k_BSKH, v_BSKH), position_BS = self.fresh[owner], self._real_positions(T)
        B, S, K, _ = k_BSKH.shape
        position_BKS = jnp.broadcast_to(position_BS[:, None], (B, K, S))
        votes_BKS = self.votes.get(owner, jnp.zeros((B, K, S), jnp.float32))
        score_BKS = self.scorer.settled(votes_BKS, position_BKS)
        worth_BKS = self.scorer.worth(score_BKS, jnp.swapaxes(k_BSKH, 1, 2), position_BKS, owner)
        limits = self._limits(index, self._count_B(T))
        return heavy_hitter.compact(
            k_BSKH,
            v_BSKH,
            score_BKS,
            position_BS,
            **limits._asdict(),
            slots=self.slabs[owner].position_BKR.shape[-1],
            worth_BKS=worth_BKS,
        )

    def _limits(self, index: int, prompt_B: jax.Array) -> SlabLimits:
        """The budget of each row, from the length of its prompt."""
        total_B = self.keep.total(prompt_B, self.by.new)
        return SlabLimits(*self.keep.split(self.keep.layer_total(total_B, index, len(self.slabs))))

    def _stepped(self, index: int, owner: int, T: int) -> Slab:
        slab, scorer = self.slabs[owner], self.scorer
        if (votes_BKR := self.votes.get(owner)) is not None:
            live_B11 = (self._count_B(T) > 0)[:, None, None]
            score_BKR = scorer.stepped(slab.score_BKR, votes_BKR)
            slab = dataclasses.replace(slab, score_BKR=jnp.where(live_B11, score_BKR, slab.score_BKR))
        if self.keep.when == "prompt":
            return slab
        worth_BKR = scorer.worth(slab.score_BKR, slab.k_BKRH, slab.position_BKR, owner)
        if T == 1:
            return heavy_hitter.evict(slab, worth_BKR, promote=self.keep.promotion == "always")
        keep_BKR = heavy_hitter.keep_set(worth_BKR, slab.position_BKR, **slab.limits._asdict())
        return heavy_hitter.emptied(slab, ~keep_BKR)

    def _real_positions(self, T: int) -> jax.Array:
        """pos_BT of this step's tokens; -1 for padding."""
        t_1T = jnp.arange(T)[None]
        return jnp.where(t_1T < self._count_B(T)[:, None], self.start_B[:, None] + t_1T, -1)

    def _count_B(self, T: int) -> jax.Array:
        return jnp.full_like(self.start_B, T) if self.count_B is None else self.count_B


jax.tree_util.register_dataclass(
    Kept,
    data_fields=["slabs", "windows", "start_B", "count_B", "query_B", "fresh", "votes"],
    meta_fields=["by", "config", "empty"],
)


def rolled_keys(k_BKRH: jax.Array, position_BKR: jax.Array, config: ModelConfig) -> jax.Array:
    """The keys, rotated on so that a head's survivors lie at consecutive positions up to the newest."""
    B, K, R, H = k_BKRH.shape
    rank_BKR = jnp.argsort(jnp.argsort(position_BKR, axis=-1), axis=-1)  # empty slots come first
    newest_BK1 = jnp.max(position_BKR, axis=-1, keepdims=True)
    turn_BKR = newest_BK1 - (R - 1 - rank_BKR) - position_BKR
    turn_BKR = jnp.where(position_BKR >= 0, turn_BKR, 0)
    table = rotation(config, turn_BKR.reshape(B * K, R))
    return apply_rope(k_BKRH.reshape(B * K, R, 1, H), table).reshape(B, K, R, H)


def full_owners(config: ModelConfig) -> list[int]:
    """The owners that a budget cuts."""
    return [owner for owner in config.owners if not config.layers[owner].slides]


def check_model(keep: Keep, config: ModelConfig, prompts: Sequence[int] | None = None, new: int = 0) -> None:
    """Raises ValueError if the model has nothing to evict, or cannot do what `keep` asks.

    Args:
      prompts: lengths of the prompts, if known: their budgets are checked too. new: tokens to be generated.
    """
    if config.sinks:
        raise ValueError(
            f"the config has {config.sinks} sinks in sliding layers; evicting caches take windows only"
        )
    keep.check_rows(prompts or [2**20], new, len(full_owners(config)))
    if keep.positions == "rolling" and config.positions != "rope":
        raise ValueError(f'positions="rolling" rotates keys, and the model has {config.positions} positions')
