"""From logits to a token: greedy, temperature, top-k, top-p, min-p; every row by its own knobs and its own
seed.

The noise of a token is `fold_in(key(seed), position)`, position being how many tokens stand before it. So a
request draws the same tokens alone, in any batch, in any slot, and after being preempted.

Axes: B rows, V vocabulary.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GREEDY_BELOW = 1e-6  # a temperature below this is 0


class Knobs(NamedTuple):
    """How each row chooses.

    Attributes:
      seed_B: uint32.
      temperature_B: float32; below 1e-6 the largest logit wins and the rest is ignored.
      top_k_B: int32; keep the k largest logits (and what ties with the k-th); below 1 = all.
      top_p_B: float32; keep the likeliest tokens until their probabilities reach p; 1 = all.
      min_p_B: float32; keep tokens at least min_p times as likely as the likeliest; 0 = all.
    """

    seed_B: Any
    temperature_B: Any
    top_k_B: Any
    top_p_B: Any
    min_p_B: Any

    @classmethod
    def greedy(cls, rows: int, numpy: ModuleType = jnp) -> "Knobs":
        """Greedy rows, as arrays of `jax.numpy` or of `numpy`."""
        f32 = (numpy.zeros(rows, "float32"), numpy.ones(rows, "float32"), numpy.zeros(rows, "float32"))
        return cls(numpy.zeros(rows, "uint32"), f32[0], numpy.full(rows, -1, "int32"), f32[1], f32[2])

    def set(self, row: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """Changes one row in place; for knobs made of numpy arrays."""
        for array, value in zip(self, (seed % 2**32, temperature, top_k, top_p, min_p)):
            array[row] = value


def sample(logits_BV: jax.Array, knobs_B: Knobs, position_B: jax.Array) -> jax.Array:
    """token_B, int32, for the place `position_B` of each row's sequence. Noise and sorting only where
    needed."""
    greedy_B = knobs_B.temperature_B < GREEDY_BELOW
    best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def draw(logits_BV):
        scaled_BV = logits_BV.astype(jnp.float32) / jnp.where(greedy_B, 1, knobs_B.temperature_B)[:, None]
        noise_BV = jax.vmap(_noise, (0, 0, None))(knobs_B.seed_B, position_B, logits_BV.shape[1])
        return jnp.argmax(keep(scaled_BV, knobs_B) + noise_BV, axis=-1).astype(jnp.int32)

    drawn_B = jax.lax.cond(jnp.all(greedy_B), lambda _: best_B, draw, logits_BV)
    return jnp.where(greedy_B, best_B, drawn_B)


def _noise(seed, position, V: int) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (V,), jnp.float32)


def keep(scaled_BV: jax.Array, knobs_B: Knobs) -> jax.Array:
    """Logits (already over the temperature) with -inf for what top-k, then top-p, then min-p leave out.

    Each filter sees the probabilities that the one before it left, renormalised; the likeliest token stays.
    """
    some = (knobs_B.top_k_B > 0) | (knobs_B.top_p_B < 1)
    kept_BV = jax.lax.cond(jnp.any(some), _by_rank, lambda x, _: x, scaled_BV, knobs_B)
    least_B = jnp.max(kept_BV, axis=-1) + jnp.log(knobs_B.min_p_B)
    return jnp.where(kept_BV >= least_B[:, None], kept_BV, -jnp.inf)


def _by_rank(scaled_BV: jax.Array, knobs_B: Knobs) -> jax.Array:
    """top-k, then top-p, as one threshold a row on the sorted logits."""
    V = scaled_BV.shape[1]
    sorted_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    top_k_B = jnp.where(knobs_B.top_k_B > 0, jnp.minimum(knobs_B.top_k_B, V), V)
    kth_B1 = jnp.take_along_axis(sorted_BV, top_k_B[:, None] - 1, axis=-1)
    among_BV = jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(among_BV, axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    # The likeliest has nothing before it and always stays, also where rounding makes the sum fall short.
    inside_BV = (before_BV < knobs_B.top_p_B[:, None]) & (among_BV > -jnp.inf)
    least_B = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1)
    return jnp.where(scaled_BV >= least_B[:, None], scaled_BV, -jnp.inf)
