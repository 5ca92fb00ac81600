"""The control:

each key has a fixed random worth, of its position, head and layer, whatever batch it is in.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mixattn.keep.scorers.protocol import Scorer


@dataclass(frozen=True)
class RandomKeys(Scorer):
    """Attributes: seed: of the worths."""

    seed: int = 0

    def worth(
        self, score_BKR: jax.Array, k_BKRH: jax.Array, position_BKR: jax.Array, layer: int
    ) -> jax.Array:
        head_1K1 = jnp.arange(position_BKR.shape[1], dtype=jnp.uint32)[None, :, None]
        salt = _mixed(jnp.uint32(self.seed % 2**32) ^ _mixed(jnp.uint32(layer + 1)))
        bits_BKR = _mixed(position_BKR.astype(jnp.uint32) ^ _mixed(head_1K1 ^ salt))
        return (bits_BKR >> 8).astype(jnp.float32) / 2**24


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit depends on all (MurmurHash3's last step)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
