"""Keys that point away from the mean direction of the others are kept. Source: KeyDiff (arXiv 2504.15364)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mixattn.keep.scorers.protocol import Scorer

TINY = 1e-12


@dataclass(frozen=True)
class KeyDiff(Scorer):
    """Minus the cosine between a key and the mean of all keys' directions."""

    def worth(
        self, score_BKR: jax.Array, k_BKRH: jax.Array, position_BKR: jax.Array, layer: int
    ) -> jax.Array:
        held_BKR1 = (position_BKR >= 0)[..., None]
        unit_BKRH = _unit(jnp.where(held_BKR1, k_BKRH.astype(jnp.float32), 0))
        return -jnp.sum(unit_BKRH * _unit(jnp.sum(unit_BKRH, axis=2, keepdims=True)), axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), TINY)
