"""The residual stream of a model before, inside and after every block, towards which others are trained.

Axes: B rows, T tokens, L layers, D model width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixattn import Transformer
from mixattn.attention import ReadKV
from mixattn.cache import Cache, FullSequence
from mixattn.model import Block, run_blocks
from mixattn.moe import Load
from mixattn.rope import RopeTable


class Streams(NamedTuple):
    """What a model computes on some rows.

    Attributes:
      inputs: before each block, and after the last; [L + 1, B, T, D].
      middles: after each block's attention half; [L, B, T, D].
    """

    inputs: jax.Array
    middles: jax.Array


def streams(model: Transformer, tokens_BT: jax.Array) -> Streams:
    """The residual streams of a teacher-forced forward pass; differentiable in the model's parameters."""
    config, T = model.config, tokens_BT.shape[1]
    kv: Cache = FullSequence({})
    x_BTD = model.embed(tokens_BT, kv.positions(T))
    inputs, middles = [x_BTD], []
    for block, layer in zip(model.blocks, config.layers):
        tapped = _Tapped(block)
        x_BTD, kv, _ = run_blocks(config, [tapped], [layer], x_BTD, kv)  # type: ignore[list-item]
        inputs.append(x_BTD)
        middles.append(tapped.middle_BTD)
    return Streams(jnp.stack(inputs), jnp.stack(middles))


class _Tapped:
    """A block that also keeps the stream between its halves."""

    middle_BTD: jax.Array

    def __init__(self, block: Block) -> None:
        self._block = block
        self.keys_values = block.keys_values

    def attend(
        self,
        x_BTD: jax.Array,
        rope: RopeTable | None,
        read_kv: ReadKV,
        going_on_BTD: jax.Array | None = None,
    ) -> jax.Array:
        self.middle_BTD = self._block.attend(x_BTD, rope, read_kv, going_on_BTD)
        return self.middle_BTD

    def feed_forward(
        self, x_BTD: jax.Array, real_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Load | None]:
        return self._block.feed_forward(x_BTD, real_BT)
