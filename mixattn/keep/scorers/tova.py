"""TOVA: the newest query's attention, averaged over all heads of a layer, so that all heads keep the same
keys.

Source: arXiv 2401.06104, section 4.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from mixattn.keep.scorers.protocol import Scorer


@dataclass(frozen=True)
class Tova(Scorer):
    """The attention of one query ranks all keys; what came before is forgotten."""

    queries: ClassVar[int] = 1

    def settled(self, votes_BKS: jax.Array, position_BKS: jax.Array) -> jax.Array:
        return _over_heads(votes_BKS)

    def stepped(self, score_BKR: jax.Array, weights_BKR: jax.Array) -> jax.Array:
        return _over_heads(weights_BKR)


def _over_heads(x_BKR: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.mean(x_BKR, axis=1, keepdims=True), x_BKR.shape)
