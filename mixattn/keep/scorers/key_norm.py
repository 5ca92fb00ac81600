"""Keys of small norm are kept: they tend to be attended to. Source: arXiv 2406.11430."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mixattn.keep.scorers.protocol import Scorer


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """Minus the key's Euclidean norm."""

    def worth(
        self, score_BKR: jax.Array, k_BKRH: jax.Array, position_BKR: jax.Array, layer: int
    ) -> jax.Array:
        return -jnp.linalg.norm(k_BKRH.astype(jnp.float32), axis=-1)
