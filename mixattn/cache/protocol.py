"""Where keys and values live between steps: one protocol, four implementations.

A cache is an immutable pytree indexed by *owner*; readers hold nothing. One step of the model is

    positions -> for each layer: write (owners), attend -> advance

`start_B` counts the tokens a row holds, `count_B` how many of this step's T tokens are real (the rest is
padding on the right; None = all are). `FullSequence` is for sequences that are all there, `Contiguous` and
`Ring` give each row its own slots (`mixattn.cache.contiguous`), `Paged` lives in pools of pages
(`mixattn.cache.paged`).

Axes: B rows, T tokens of this step, S slots, N query heads, K key/value heads, H head size, D model width.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

from mixattn.spec import Layer
from pallas_kernels.attention import attention

type KV = tuple[jax.Array, jax.Array]


class Cache(Protocol):
    def positions(self, T: int) -> jax.Array:
        """Absolute positions_BT of this step's tokens ([1, T] where rows agree)."""
        ...

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> "Cache":
        """Takes the K/V that `layer` computed for this step's tokens."""
        ...

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> jax.Array:
        """out_BTNH of this step's queries against what the layer's owner holds, its window applied."""
        ...

    def last(self, T: int) -> "Cache":
        """The same cache, asked about each row's last token of this step only (T becomes 1). Read-only."""
        ...

    def pick_last(self, x_BTD: jax.Array) -> jax.Array:
        """x_B1D of each row's last token of this step."""
        ...

    def advance(self, T: int) -> "Cache":
        """The cache behind this step."""
        ...


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["kv", "pos_BT", "segment_BT"], meta_fields=[]
)
@dataclass(frozen=True)
class FullSequence:
    """Not a cache: the whole sequence is there, and everything is seen at once."""

    kv: dict[int, KV]
    pos_BT: jax.Array | None = None
    segment_BT: jax.Array | None = None

    def positions(self, T: int) -> jax.Array:
        """Of the last T tokens."""
        if self.pos_BT is not None:
            return self.pos_BT[:, -T:]
        S = next(iter(self.kv.values()))[0].shape[1] if self.kv else T
        return jnp.arange(S - T, S)[None]

    def write(self, layer: Layer, k_BTKH, v_BTKH) -> Self:
        return dataclasses.replace(self, kv={**self.kv, layer.index: (k_BTKH, v_BTKH)})

    def attend(self, layer: Layer, q_BTNH, *, scale=None, softcap=None) -> jax.Array:
        k, v = self.kv[layer.owner]
        T = q_BTNH.shape[1]
        where: dict[str, Any] = {}
        if self.pos_BT is not None:
            where |= {"q_pos_BT": self.pos_BT[:, -T:], "k_pos_BS": self.pos_BT}
        if self.segment_BT is not None:
            where |= {"segment_q_BT": self.segment_BT[:, -T:], "segment_k_BS": self.segment_BT}
        return attention(q_BTNH, k, v, window=layer.window, scale=scale, softcap=softcap, **where)

    def last(self, T: int) -> Self:
        return self

    def pick_last(self, x_BTD) -> jax.Array:
        return x_BTD[:, -1:]

    def advance(self, T: int) -> Self:
        return self


def ahead(start_B: jax.Array, T: int) -> jax.Array:
    """The T positions from each row's start on, [B, T]."""
    return start_B[:, None] + jnp.arange(T)[None]


def held(end_B: jax.Array, S: int) -> jax.Array:
    """The position each of S slots holds once positions below `end_B` were put into slot p % S; negative =
    none."""
    newest_B1 = end_B[:, None] - 1
    return newest_B1 - (newest_B1 - jnp.arange(S)[None]) % S


def pick(x_BTD: jax.Array, index_B: jax.Array) -> jax.Array:
    """x_B1D of one token a row."""
    return jnp.take_along_axis(x_BTD, jnp.maximum(index_B, 0)[:, None, None], axis=1)
