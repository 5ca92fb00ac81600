"""Caches for `mixattn.forced_together`: a prompt that several scorers vote on, and its teacher-forced rest.

Both need a model in which every layer reads full K/V of its own. Axes: see `mixattn.cache.kept`; S tokens.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from mixattn.cache.kept import Kept
from mixattn.cache.protocol import KV, FullSequence, OneForward, step_positions
from mixattn.spec import Layer
from pallas_kernels.attention import attention


@dataclass(frozen=True)
class VotedPrompt(FullSequence):
    """A whole prompt without padding.

    Attributes:
      parts: empty `Kept` caches whose scorers vote.
    """

    parts: tuple[Kept, ...] = ()

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        k_BSKH, v_BSKH = self.kv[layer.owner]
        options: dict[str, Any] = {"scale": scale, "softcap": softcap}
        out_BTNH, lse_BTN = attention(q_BTNH, k_BSKH, v_BSKH, return_lse=True, **options)
        parts = tuple(part.voted(layer, q_BTNH, lse_BTN, (k_BSKH, v_BSKH), options) for part in self.parts)
        return out_BTNH, dataclasses.replace(self, parts=parts)


@dataclass(frozen=True)
class ForcedRest(OneForward):
    """S given tokens behind settled prompts; a layer's attention goes token by token and evicts as it goes.

    Attributes:
      layers: owner -> its `Kept`, of this one owner.
      start_B: tokens of the prompts.
      now: owner -> K/V of the S tokens.
    """

    layers: dict[int, Kept]
    start_B: jax.Array
    now: dict[int, KV]

    def positions(self, T: int) -> jax.Array:
        return step_positions(self.start_B, T)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        return dataclasses.replace(self, now={**self.now, layer.index: (k_BTKH, v_BTKH)})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        def step(held: Kept, token: tuple[jax.Array, ...]) -> tuple[Kept, jax.Array]:
            q_BNH, k_BKH, v_BKH = token
            held = held.write(layer, k_BKH[:, None], v_BKH[:, None])
            out_B1NH, held = held.attend(layer, q_BNH[:, None], scale=scale, softcap=softcap)
            return held.advance(1), out_B1NH[:, 0]

        each = tuple(jnp.swapaxes(x, 0, 1) for x in (q_BTNH, *self.now[layer.index]))
        _, out_TBNH = jax.lax.scan(step, self.layers[layer.index], each)
        return jnp.swapaxes(out_TBNH, 0, 1), self
