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
LANES = 128


class SamplingParams(NamedTuple):
    """How each row chooses.

    Attributes:
      seed_B: uint32.
      temperature_B: float32; below 1e-6 the largest logit wins and the rest is ignored.
      top_k_B: int32; keep the k largest logits (and what ties with the k-th); below 1 = all.
      top_p_B: float32; keep the likeliest tokens until their probabilities reach p (and what ties with the
        last of them); 1 = all.
      min_p_B: float32; keep tokens at least min_p times as likely as the likeliest; 0 = all.
    """

    seed_B: Any
    temperature_B: Any
    top_k_B: Any
    top_p_B: Any
    min_p_B: Any

    @classmethod
    def greedy(cls, rows: int, numpy: ModuleType = jnp) -> "SamplingParams":
        """Greedy rows, as arrays of `jax.numpy` or of `numpy`."""
        f32 = (numpy.zeros(rows, "float32"), numpy.ones(rows, "float32"), numpy.zeros(rows, "float32"))
        return cls(numpy.zeros(rows, "uint32"), f32[0], numpy.full(rows, -1, "int32"), f32[1], f32[2])

    def set(self, row: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """Changes one row in place; for knobs made of numpy arrays."""
        for array, value in zip(self, (seed % 2**32, temperature, top_k, top_p, min_p)):
            array[row] = value


def sample(logits_BV: jax.Array, sampling_B: SamplingParams, position_B: jax.Array) -> jax.Array:
    """token_B, int32, for the place `position_B` of each row's sequence. Noise and filters only where
    needed."""
    greedy_B = sampling_B.temperature_B < GREEDY_BELOW
    best_B = largest(logits_BV)

    def draw(logits_BV):
        scaled_BV = logits_BV.astype(jnp.float32) / jnp.where(greedy_B, 1, sampling_B.temperature_B)[:, None]
        noise_BV = jax.vmap(_noise, (0, 0, None))(sampling_B.seed_B, position_B, logits_BV.shape[1])
        return largest(keep(scaled_BV, sampling_B) + noise_BV)

    drawn_B = jax.lax.cond(jnp.all(greedy_B), lambda _: best_B, draw, logits_BV)
    return jnp.where(greedy_B, best_B, drawn_B)


def largest(x_BV: jax.Array) -> jax.Array:
    """argmax_B, int32; the first of equals.

    In two stages: XLA reduces single numbers with vector instructions, but not pairs of number and place.
    """
    B, V = x_BV.shape
    if V < 2 * LANES:
        return jnp.argmax(x_BV, axis=-1).astype(jnp.int32)
    wide = -(-V // LANES)
    x_BVV = jnp.pad(x_BV, ((0, 0), (0, wide * LANES - V)), constant_values=-jnp.inf).reshape(B, LANES, wide)
    block_B = jnp.argmax(jnp.max(x_BVV, axis=-1), axis=-1)
    inside_B = jnp.argmax(jnp.take_along_axis(x_BVV, block_B[:, None, None], axis=1)[:, 0], axis=-1)
    return (block_B * wide + inside_B).astype(jnp.int32)


def _noise(seed, position, V: int) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (V,), jnp.float32)


def keep(scaled_BV: jax.Array, sampling_B: SamplingParams) -> jax.Array:
    """Logits (already over the temperature) with -inf for what top-k, then top-p, then min-p leave out.

    Each filter sees the probabilities that the one before it left, renormalised; the likeliest token stays.
    Of equal logits all or none stay.
    """
    kept_BV = jnp.where(scaled_BV == 0, 0, scaled_BV)  # -0.0 equals 0.0, but its bits do not
    for some, filtered in ((sampling_B.top_k_B > 0, _top_k), (sampling_B.top_p_B < 1, _top_p)):
        kept_BV = jax.lax.cond(jnp.any(some), filtered, lambda x, _: x, kept_BV, sampling_B)
    least_B = jnp.max(kept_BV, axis=-1) + jnp.log(sampling_B.min_p_B)
    return jnp.where(kept_BV >= least_B[:, None], kept_BV, -jnp.inf)


def _top_k(x_BV: jax.Array, sampling_B: SamplingParams) -> jax.Array:
    least_B1 = threshold(x_BV, jnp.ones((1, 1), jnp.int32), jnp.maximum(sampling_B.top_k_B, 1))[:, None]
    return jnp.where((x_BV >= least_B1) | (sampling_B.top_k_B < 1)[:, None], x_BV, -jnp.inf)


def _top_p(x_BV: jax.Array, sampling_B: SamplingParams) -> jax.Array:
    # A row without a likeliest token (NaN, or nothing left) stays as it is.
    mass_BV = jnp.exp(x_BV - jnp.max(x_BV, axis=-1, keepdims=True))
    # More than nothing, or nothing would be enough: the likeliest token weighs 1.
    enough_B = jnp.maximum(sampling_B.top_p_B * _total(mass_BV), jnp.finfo(jnp.float32).tiny)
    least_B1 = threshold(x_BV, mass_BV, enough_B)[:, None]
    return jnp.where((x_BV >= least_B1) | (sampling_B.top_p_B >= 1)[:, None], x_BV, -jnp.inf)


def threshold(x_BV: jax.Array, weight_BV: jax.Array, enough_B: jax.Array) -> jax.Array:
    """By row the least value above which the weights (none negative; [B, V] or [1, 1]) sum to less than
    `enough_B` (> 0).

    Exact, and nothing is sorted: floats are ordered as their bits are, read as integers (those of negative
    numbers turned around), so 32 halvings of the integers between -inf and inf find it. Sums are taken in
    one order, and adding something that is not negative never makes a rounded sum smaller; so what is
    searched is monotone in spite of rounding.
    """

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = (low_B & high_B) + ((low_B ^ high_B) >> 1)  # their mean, which a sum would overflow
        above_BV = jnp.where(x_BV > _float(middle_B)[:, None], weight_BV, 0)
        few_B = _total(above_BV) < enough_B
        return jnp.where(few_B, low_B, middle_B + 1), jnp.where(few_B, middle_B, high_B)

    B, infinity = len(enough_B), jnp.int32(0x7F800000)
    bounds = jnp.full(B, -infinity - 1), jnp.full(B, infinity)
    return _float(jax.lax.fori_loop(0, 32, halve, bounds)[1])


def _float(ordered_B: jax.Array) -> jax.Array:
    """float32 whose place in the order of all float32 is `ordered_B`."""
    return jax.lax.bitcast_convert_type(ordered_B ^ ((ordered_B >> 31) & 0x7FFFFFFF), jnp.float32)


def _total(x_BV: jax.Array) -> jax.Array:
    """Sum_B; in lanes, so that rounding errors grow with V / 128."""
    B, V = x_BV.shape
    if V % LANES:
        return jnp.sum(x_BV, axis=-1)
    return jnp.sum(jnp.sum(x_BV.reshape(B, -1, LANES), axis=1), axis=-1)
