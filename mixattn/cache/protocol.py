"""The KV-cache protocol, with `FullSequence` for complete sequences.

A cache is an immutable pytree indexed by *owner*; reader layers store nothing. One step of the model is

    positions -> for each layer: write (owners), attend -> advance

`start_B` is the number of tokens that a row holds. `count_B` is how many of this step's T tokens are real;
the rest is padding on the right, and None means that all are real. `Contiguous` and `Ring` give each row its
own slots (`mixattn.cache.contiguous`); `Paged` stores rows in pools of pages (`mixattn.cache.paged`).

Axes: B rows, T tokens of this step, S slots, N query heads, K key/value heads, H head size, D model width.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

from mixattn.cache.sinks import attend_layer
from mixattn.spec import Layer, ModelConfig

type KV = tuple[jax.Array, jax.Array]


class Cache(Protocol):
    """Keys and values of past tokens, and the attention over them."""

    def positions(self, T: int) -> jax.Array:
        """Absolute positions_BT of this step's tokens ([1, T] if all rows agree)."""
        ...

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        """Stores the K/V that the owner `layer` computed for this step's tokens."""
        ...

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        """Attention of this step's queries over the K/V of the layer's owner, within the layer's window.

        Returns:
          out_BTNH, and the cache with what these queries said of the keys, which is nothing in most caches.
        """
        ...

    def reads_every_query(self, layer: Layer) -> bool:
        """Whether this step's `attend` of a layer must get all queries, even if only last tokens go on."""
        ...

    def at_last(self, T: int) -> Self:
        """A view whose step is each row's last real token (T becomes 1); it is not written to."""
        ...

    def after_view(self, view: Self) -> Self:
        """The cache with what a view of it (`at_last`) has learned of its keys."""
        ...

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        """x_B1D of each row's last real token."""
        ...

    def advance(self, T: int) -> Self:
        """The cache after this step."""
        ...


class RowCache(Cache, Protocol):
    """A cache with slots of its own for each row, as generation without a server uses."""

    @property
    def start_B(self) -> jax.Array:
        """Tokens that each row has read."""
        ...

    def with_counts(self, count_B: jax.Array | None) -> Self:
        """The cache with `count_B` real tokens in the next step; 0 leaves a row unchanged."""
        ...

    def for_prompts(self, count_B: jax.Array, T: int) -> tuple[Self, int]:
        """The empty cache, ready for prompts of these lengths, and how many of T tokens a step may bring."""
        ...


class CacheMaker(Protocol):
    """Makes empty caches; hashable, because it is static under jit. The classes of caches are such."""

    def init(self, config: ModelConfig, batch: int, capacity: int) -> RowCache:
        """`batch` empty rows for sequences of at most `capacity` tokens."""
        ...


class OneForward:
    """The parts of a `Cache` that say nothing where one forward pass sees all tokens and none follows."""

    def reads_every_query(self, layer: Layer) -> bool:
        return False

    def at_last(self, T: int) -> Self:
        return self

    def after_view(self, view: Self) -> Self:
        return self

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD[:, -1:]

    def advance(self, T: int) -> Self:
        return self


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["kv", "pos_BT", "segment_BT"], meta_fields=[]
)
@dataclass(frozen=True)
class FullSequence(OneForward):
    """The K/V of a complete sequence, for teacher forcing without a cache."""

    kv: dict[int, KV]
    pos_BT: jax.Array | None = None
    segment_BT: jax.Array | None = None

    def positions(self, T: int) -> jax.Array:
        """Positions of the last T tokens."""
        if self.pos_BT is not None:
            return self.pos_BT[:, -T:]
        S = next(iter(self.kv.values()))[0].shape[1] if self.kv else T
        return jnp.arange(S - T, S)[None]

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        return dataclasses.replace(self, kv={**self.kv, layer.index: (k_BTKH, v_BTKH)})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        k, v = self.kv[layer.owner]
        T = q_BTNH.shape[1]
        mask: dict[str, Any] = {}
        if self.pos_BT is not None:
            mask |= {"q_pos_BT": self.pos_BT[:, -T:], "k_pos_BS": self.pos_BT}
        if self.segment_BT is not None:
            mask |= {"segment_q_BT": self.segment_BT[:, -T:], "segment_k_BS": self.segment_BT}
        out_BTNH = attend_layer(layer, q_BTNH, k, v, scale=scale, softcap=softcap, **mask)
        return out_BTNH, self


def step_positions(start_B: jax.Array, T: int) -> jax.Array:
    """positions_BT: T positions per row, beginning at the row's start."""
    return start_B[:, None] + jnp.arange(T)[None]


def slot_of(pos_BT: jax.Array, S: int, sinks: int = 0) -> jax.Array:
    """The slot of each position: the first `sinks` keep theirs, the others take turns in the rest of S."""
    sinks = min(sinks, S - 1)
    return jnp.where(pos_BT < sinks, pos_BT, sinks + (pos_BT - sinks) % (S - sinks))


def slot_positions(end_B: jax.Array, S: int, sinks: int = 0) -> jax.Array:
    """pos_BS: the position in each of S slots when positions below `end_B` are stored as `slot_of` says.

    Negative = the slot is empty.
    """
    sinks = min(sinks, S - 1)
    slot_1S, end_B1 = jnp.arange(S)[None], end_B[:, None]
    newest_B1 = end_B1 - sinks - 1
    turning_BS = newest_B1 - (newest_B1 - (slot_1S - sinks)) % (S - sinks)
    first_BS = jnp.where(slot_1S < end_B1, slot_1S, -1)
    return jnp.where(slot_1S < sinks, first_BS, jnp.where(turning_BS < 0, -1, turning_BS + sinks))


def select_token(x_BTD: jax.Array, index_B: jax.Array) -> jax.Array:
    """x_B1D of one token per row; there may be more axes than D."""
    index = jnp.maximum(index_B, 0).reshape(-1, *(1,) * (x_BTD.ndim - 1))
    return jnp.take_along_axis(x_BTD, index, axis=1)
