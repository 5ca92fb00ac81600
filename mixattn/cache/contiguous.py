"""Caches with a slot array per row: for every token (`Contiguous`), or for one window (`Ring`).

Axes: B rows, T tokens of this step, S slots, N query heads, K key/value heads, H head size, D model width.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mixattn.cache.protocol import KV, select_token, slot_positions, step_positions
from mixattn.spec import Layer, ModelConfig
from pallas_kernels.attention import attention


@dataclass(frozen=True)
class Contiguous:
    """A cache that keeps every token: `capacity` slots per row and owner.

    The simplest cache, against which the others are tested. A row must never hold more than `capacity`
    tokens.

    Attributes:
      kv: owner -> k_BKSH, v_BKSH; position p is stored in slot p % S.
      start_B, count_B: tokens held before this step, and this step's real tokens (None = all).
      fresh: owner -> this step's k_BTKH, v_BTKH that are not in their slots yet.
      query_B: position of this step's first query if it differs from start_B.
      empty: static; every row starts at 0, so that this step attends only to itself.
    """

    kv: dict[int, KV]
    start_B: jax.Array
    count_B: jax.Array | None = None
    fresh: dict[int, KV] = dataclasses.field(default_factory=dict)
    query_B: jax.Array | None = None
    empty: bool = True

    @classmethod
    def init(cls, config: ModelConfig, batch: int, capacity: int, *, dtype: DTypeLike | None = None) -> Self:
        """`batch` empty rows with room for `capacity` tokens each."""
        kv = {}
        for owner in config.owners:
            shape = (batch, config.n_kv_heads, cls.slots(config.layers[owner], capacity), config.head_dim)
            kv[owner] = (jnp.zeros(shape, dtype or config.dtype), jnp.zeros(shape, dtype or config.dtype))
        return cls(kv, jnp.zeros(batch, jnp.int32))

    @staticmethod
    def slots(layer: Layer, capacity: int) -> int:
        """Slots per row that this owner needs."""
        return capacity

    def with_counts(self, count_B: jax.Array | None) -> Self:
        """The cache with `count_B` real tokens in the next step; 0 leaves a row unchanged."""
        return dataclasses.replace(self, count_B=count_B)

    def for_prompts(self, count_B: jax.Array, T: int) -> tuple[Self, int]:
        return self, T

    def nbytes(self) -> dict[int, int]:
        """Bytes of K and V by owner, over all rows."""
        return {owner: k.nbytes + v.nbytes for owner, (k, v) in self.kv.items()}

    def positions(self, T: int) -> jax.Array:
        return step_positions(self.start_B if self.query_B is None else self.query_B, T)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        owner, T = layer.index, k_BTKH.shape[1]
        # A chunk could overwrite keys that its own first queries attend to, so `advance` stores it.
        if self.empty or (T > 1 and layer.window is not None):
            return dataclasses.replace(self, fresh={**self.fresh, owner: (k_BTKH, v_BTKH)})
        return dataclasses.replace(self, kv={**self.kv, owner: self._stored(owner, k_BTKH, v_BTKH)})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        options: dict[str, Any] = {"window": layer.window, "scale": scale, "softcap": softcap}
        if self.empty and self.query_B is None:
            return attention(q_BTNH, *self.fresh[layer.owner], **options), self
        k_BSKH, v_BSKH, k_pos_BS = self._visible(layer)
        q_pos_BT = self.positions(q_BTNH.shape[1])
        return attention(q_BTNH, k_BSKH, v_BSKH, q_pos_BT=q_pos_BT, k_pos_BS=k_pos_BS, **options), self

    def reads_every_query(self, layer: Layer) -> bool:
        return False

    def at_last(self, T: int) -> Self:
        return dataclasses.replace(self, query_B=self.start_B + jnp.maximum(self._count_B(T) - 1, 0))

    def after_view(self, view: Self) -> Self:
        return self

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return select_token(x_BTD, self._count_B(x_BTD.shape[1]) - 1)

    def advance(self, T: int) -> Self:
        stored = {owner: self._stored(owner, *fresh) for owner, fresh in self.fresh.items()}
        start_B = self.start_B + self._count_B(T)
        return dataclasses.replace(self, kv={**self.kv, **stored}, start_B=start_B, fresh={}, empty=False)

    def _count_B(self, T: int) -> jax.Array:
        return jnp.full_like(self.start_B, T) if self.count_B is None else self.count_B

    def _stored(self, owner: int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KV:
        """The owner's slots after this step's real tokens are written; of more than S tokens, the last S."""
        k_BKSH, v_BKSH = self.kv[owner]
        (B, T), S = k_BTKH.shape[:2], k_BKSH.shape[2]
        t_1T, count_B1 = jnp.arange(T)[None], self._count_B(T)[:, None]
        keep_BT = (t_1T < count_B1) & (t_1T >= count_B1 - S)
        slot_BT = jnp.where(keep_BT, step_positions(self.start_B, T) % S, S)
        row_B1 = jnp.arange(B)[:, None]
        # Without the barrier, XLA recomputes the write of a single row inside attention and then copies the
        # whole cache in every decode step.
        return jax.lax.optimization_barrier(
            (
                k_BKSH.at[row_B1, :, slot_BT].set(k_BTKH, mode="drop"),
                v_BKSH.at[row_B1, :, slot_BT].set(v_BTKH, mode="drop"),
            )
        )

    def _visible(self, layer: Layer) -> tuple[jax.Array, jax.Array, jax.Array]:
        """k_BSKH, v_BSKH and pos_BS (negative = empty) of the slots and of tokens not stored yet."""
        owner = layer.owner
        k_BSKH, v_BSKH = (jnp.swapaxes(x, 1, 2) for x in self.kv[owner])
        B, S = k_BSKH.shape[:2]
        if owner not in self.fresh:
            if layer.window is None:  # never wraps; the causal mask hides unwritten slots
                return k_BSKH, v_BSKH, jnp.broadcast_to(jnp.arange(S), (B, S))
            return k_BSKH, v_BSKH, slot_positions(self.start_B + self._count_B(1), S)
        k_BTKH, v_BTKH = self.fresh[owner]
        T = k_BTKH.shape[1]
        t_1T = jnp.arange(T)[None]
        pos_BT = jnp.where(t_1T < self._count_B(T)[:, None], step_positions(self.start_B, T), -1)
        if self.empty:
            return k_BTKH, v_BTKH, pos_BT
        keys = jnp.concatenate([k_BSKH, k_BTKH], axis=1)
        values = jnp.concatenate([v_BSKH, v_BTKH], axis=1)
        return keys, values, jnp.concatenate([slot_positions(self.start_B, S), pos_BT], axis=1)


@dataclass(frozen=True)
class Ring(Contiguous):
    """A `Contiguous` cache whose sliding owners keep only the last `window` tokens, as `kv_bytes` counts."""

    @staticmethod
    def slots(layer: Layer, capacity: int) -> int:
        return capacity if layer.window is None else min(layer.window, capacity)


for _cache in (Contiguous, Ring):
    jax.tree_util.register_dataclass(
        _cache, data_fields=["kv", "start_B", "count_B", "fresh", "query_B"], meta_fields=["empty"]
    )
