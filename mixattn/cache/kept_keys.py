"""A cache for `mixattn.generate` that evicts: heavy hitters and recent keys stay, per layer and head (H2O).

The prompt is computed with full attention; then each owner's keys are cut to the `heavy` ones that received
the most attention and the `recent` newest, and every step evicts one (`pallas_kernels.heavy_hitter`). A
sliding owner keeps its window, as always. Of the last owner, whose queries a prefill computes for the last
token only, the scores begin with that token's.

Source: H2O (arXiv 2306.14048), algorithm 1. Axes: B rows, T tokens, N query heads, K key/value heads, H head
size, S keys, R slots.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mixattn.cache.protocol import KV, select_token, step_positions
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import heavy_hitter
from pallas_kernels.attention import attention
from pallas_kernels.heavy_hitter import Slab


@dataclass(frozen=True)
class KeptKeys:
    """The surviving keys of each owner; see the module. `with_budget` makes a class of a fixed budget.

    Attributes:
      slabs: owner -> its surviving keys.
      start_B, count_B: tokens before this step, and this step's real tokens.
      fresh: owner -> the prompt's k_BTKH, v_BTKH before the first cut.
      scratch: what `attend` adds in this step, by owner: column sums of the prompt, or slabs. Empty between
        steps; shared by this step's copies, because `attend` returns no cache.
      empty: static; nothing is held yet.
    """

    heavy: ClassVar[int] = 0
    recent: ClassVar[int] = 1
    slabs: dict[int, Slab]
    start_B: jax.Array
    count_B: jax.Array | None = None
    fresh: dict[int, KV] = field(default_factory=dict)
    query_B: jax.Array | None = None
    scratch: dict[int, Any] = field(default_factory=dict)
    empty: bool = True

    @classmethod
    def init(cls, config: ModelConfig, batch: int, capacity: int, *, dtype: DTypeLike | None = None) -> Self:
        """`batch` empty rows; `capacity` does not matter, since the budget bounds them."""
        if config.sinks:
            raise ValueError(f"the config has {config.sinks} sinks; a cache that evicts keeps windows only")
        slabs = {}
        for owner in config.owners:
            heavy, recent = cls._budget(config.layers[owner])
            shape = (batch, config.n_kv_heads, heavy + recent + 1)
            kv = jnp.zeros((*shape, config.head_dim), dtype or config.dtype)
            position = jnp.full(shape, heavy_hitter.slab.EMPTY, jnp.int32)
            slabs[owner] = Slab(kv, kv, jnp.zeros(shape, jnp.float32), position, heavy, recent)
        return cls(slabs, jnp.zeros(batch, jnp.int32))

    @classmethod
    def _budget(cls, layer: Layer) -> tuple[int, int]:
        return (cls.heavy, cls.recent) if layer.window is None else (0, max(1, layer.window - 1))

    def with_counts(self, count_B: jax.Array | None) -> Self:
        return dataclasses.replace(self, count_B=count_B)

    def positions(self, T: int) -> jax.Array:
        return step_positions(self.start_B if self.query_B is None else self.query_B, T)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        owner = layer.index
        if self.empty:
            return dataclasses.replace(self, fresh={**self.fresh, owner: (k_BTKH, v_BTKH)})
        live_B = self._count_B(1) > 0
        position_B = jnp.where(live_B, self.start_B, -1)
        slab = heavy_hitter.append(self.slabs[owner], k_BTKH[:, 0], v_BTKH[:, 0], position_B)
        return dataclasses.replace(self, slabs={**self.slabs, owner: slab})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> jax.Array:
        if self.empty:
            return self._attend_prompt(layer, q_BTNH, scale, softcap)
        slab = self.scratch.get(layer.owner, self.slabs[layer.owner])
        position_B = jnp.where(self._count_B(1) > 0, self.start_B, -1)
        out_BNH, self.scratch[layer.owner] = heavy_hitter.attend(
            q_BTNH[:, 0], slab, position_B, scale=scale, softcap=softcap
        )
        return out_BNH[:, None]

    def _attend_prompt(
        self, layer: Layer, q_BTNH: jax.Array, scale: float | None, softcap: float | None
    ) -> jax.Array:
        k_BSKH, v_BSKH = self.fresh[layer.owner]
        q_pos_BT, k_pos_BS = self.positions(q_BTNH.shape[1]), self._prompt_positions(k_BSKH.shape[1])
        if self.query_B is None:  # padding on the right must not vote on real keys
            q_pos_BT = jnp.where(k_pos_BS < 0, -1, q_pos_BT)
        options: dict[str, Any] = {
            "window": layer.window,
            "scale": scale,
            "softcap": softcap,
            "q_pos_BT": q_pos_BT,
            "k_pos_BS": k_pos_BS,
        }
        out_BTNH, lse_BTN = attention(q_BTNH, k_BSKH, v_BSKH, return_lse=True, **options)
        sums_BKS = heavy_hitter.column_sums(q_BTNH, k_BSKH, lse_BTN, **options)
        self.scratch[layer.owner] = self.scratch.get(layer.owner, jnp.zeros_like(sums_BKS)) + sums_BKS
        return out_BTNH

    def _prompt_positions(self, S: int) -> jax.Array:
        """pos_BS of the prompt's keys; -1 for padding."""
        s_1S = jnp.arange(S)[None]
        return jnp.where(s_1S < self._count_B(S)[:, None], s_1S, -1)

    def at_last(self, T: int) -> Self:
        return dataclasses.replace(self, query_B=self.start_B + jnp.maximum(self._count_B(T) - 1, 0))

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return select_token(x_BTD, self._count_B(x_BTD.shape[1]) - 1)

    def advance(self, T: int) -> Self:
        """Cuts the prompt to the budget, or evicts what this step put over it."""
        slabs = {}
        for owner, slab in self.slabs.items():
            if self.empty:
                score_BKS = self.scratch[owner]
                position_BS = self._prompt_positions(score_BKS.shape[-1])
                slabs[owner] = heavy_hitter.compact(
                    *self.fresh[owner], score_BKS, position_BS, heavy=slab.heavy, recent=slab.recent
                )
            else:
                slabs[owner] = heavy_hitter.evict(self.scratch[owner])
        return dataclasses.replace(
            self,
            slabs=slabs,
            start_B=self.start_B + self._count_B(T),
            fresh={},
            scratch={},
            query_B=None,
            empty=False,
        )

    def _count_B(self, T: int) -> jax.Array:
        return jnp.full_like(self.start_B, T) if self.count_B is None else self.count_B


def with_budget(heavy: int, recent: int) -> type[KeptKeys]:
    """A `KeptKeys` that keeps `heavy` + `recent` keys of each owner that does not slide."""
    made = type(f"KeptKeys{heavy}And{recent}", (KeptKeys,), {"heavy": heavy, "recent": recent})
    jax.tree_util.register_dataclass(
        made,
        data_fields=["slabs", "start_B", "count_B", "fresh", "query_B", "scratch"],
        meta_fields=["empty"],
    )
    return made
