"""The residual stream of a model before and inside every block, cached on disk for training others on it.

Axes: R rows, T tokens, L layers, D model width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixattn import Transformer
from mixattn.cache import Cache, FullSequence
from mixattn.model import run_blocks


class Streams(NamedTuple):
    """What a model computes on some rows.

    Attributes:
      inputs: before each block, and after the last: [L + 1, R, T, D].
      middles: after each block's attention half: [L, R, T, D].
    """

    inputs: jax.Array
    middles: jax.Array


def streams(model: Transformer, tokens_BT: jax.Array) -> Streams:
    """The residual streams of a teacher-forced forward pass."""
    config, T = model.config, tokens_BT.shape[1]
    kv: Cache = FullSequence({})
    x_BTD = model.embed(tokens_BT, kv.positions(T))
    inputs, middles = [x_BTD], []
    for block, layer in zip(model.blocks, config.layers):
        tap: list[jax.Array] = []
        x_BTD, kv, _ = run_blocks(config, [_Tapped(block, tap)], [layer], x_BTD, kv)  # type: ignore[list-item]
        inputs.append(x_BTD)
        middles += tap
    return Streams(jnp.stack(inputs), jnp.stack(middles))


class _Tapped:
    """A block that also notes the stream between its halves."""

    def __init__(self, block, tap):
        self._block, self._tap = block, tap
        self.keys_values = block.keys_values

    def attend(self, x_BTD, rope, read_kv):
        self._tap.append(self._block.attend(x_BTD, rope, read_kv))
        return self._tap[-1]

    def feed_forward(self, x_BTD, real_BT=None):
        return self._block.feed_forward(x_BTD, real_BT)
