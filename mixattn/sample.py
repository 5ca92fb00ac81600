"""Samples tokens from logits: greedy, temperature, top-k, top-p, min-p; each row has its own parameters and
seed.

The noise key of a token is `fold_in(key(seed), position)`, where position is the number of tokens before it.
A request's tokens are therefore independent of batch composition, slot and preemption.

Axes: B rows, V vocabulary.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GREEDY_BELOW = 1e-6  # temperatures below this are greedy
LANES = 128

type Array = jax.Array | np.ndarray


class SamplingParams(NamedTuple):
    """Sampling parameters of each row.

    Attributes:
      seed_B: uint32.
      temperature_B: float32; below 1e-6 the largest logit is taken and the filters do not apply.
      top_k_B: int32; keeps the k largest logits and ties of the k-th; below 1 = all.
      top_p_B: float32; keeps the most likely tokens until their probabilities sum to p, and ties of the last;
        1 = all.
      min_p_B: float32; keeps tokens at least min_p times as likely as the most likely one; 0 = all.
    """

    seed_B: Array
    temperature_B: Array
    top_k_B: Array
    top_p_B: Array
    min_p_B: Array

    @classmethod
    def greedy(cls, rows: int, numpy: ModuleType = jnp) -> "SamplingParams":
        """Greedy rows as arrays of `numpy`, which is `jax.numpy` or `numpy` itself."""
        f32 = (numpy.zeros(rows, "float32"), numpy.ones(rows, "float32"), numpy.zeros(rows, "float32"))
        return cls(numpy.zeros(rows, "uint32"), f32[0], numpy.full(rows, -1, "int32"), f32[1], f32[2])

    def set(self, row: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """Sets one row in place. The arrays must be numpy arrays."""
        for array, value in zip(self, (seed % 2**32, temperature, top_k, top_p, min_p)):
            array[row] = value


def sample(logits_BV: jax.Array, sampling_B: SamplingParams, position_B: jax.Array) -> jax.Array:
    """token_B, int32, for position `position_B` of each row's sequence.

    Noise and filters are computed only if a row needs them.
    """
    greedy_B = sampling_B.temperature_B < GREEDY_BELOW
    best_B = argmax(logits_BV)

    def draw(logits_BV: jax.Array) -> jax.Array:
        scaled_BV = logits_BV.astype(jnp.float32) / jnp.where(greedy_B, 1, sampling_B.temperature_B)[:, None]
        noise_BV = jax.vmap(_noise, (0, 0, None))(sampling_B.seed_B, position_B, logits_BV.shape[1])
        return argmax(filter_logits(scaled_BV, sampling_B) + noise_BV)

    drawn_B = jax.lax.cond(jnp.all(greedy_B), lambda _: best_B, draw, logits_BV)
    return jnp.where(greedy_B, best_B, drawn_B)


def argmax(x_BV: jax.Array) -> jax.Array:
    """argmax_B, int32; the first of equal values.

    Computed in two stages, because XLA vectorizes a reduction of values but not of (value, index) pairs.
    """
    B, V = x_BV.shape
    if V < 2 * LANES:
        return jnp.argmax(x_BV, axis=-1).astype(jnp.int32)
    wide = -(-V // LANES)
    x_BVV = jnp.pad(x_BV, ((0, 0), (0, wide * LANES - V)), constant_values=-jnp.inf).reshape(B, LANES, wide)
    block_B = jnp.argmax(jnp.max(x_BVV, axis=-1), axis=-1)
    inside_B = jnp.argmax(jnp.take_along_axis(x_BVV, block_B[:, None, None], axis=1)[:, 0], axis=-1)
    return (block_B * wide + inside_B).astype(jnp.int32)


def _noise(seed: Array, position: Array, V: int) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (V,), jnp.float32)


def filter_logits(scaled_BV: jax.Array, sampling_B: SamplingParams) -> jax.Array:
    """Logits (already divided by the temperature) with -inf where top-k, then top-p, then min-p exclude a
    token.

    Each filter applies to the renormalized probabilities that the previous one left. The most likely token is
    always kept. Of equal logits, all or none are kept.
    """
    kept_BV = jnp.where(scaled_BV == 0, 0, scaled_BV)  # -0.0 equals 0.0, but its bits do not
    for active_B, apply_filter in ((sampling_B.top_k_B > 0, _top_k), (sampling_B.top_p_B < 1, _top_p)):
        kept_BV = jax.lax.cond(jnp.any(active_B), apply_filter, lambda x, _: x, kept_BV, sampling_B)
    min_logit_B = jnp.max(kept_BV, axis=-1) + jnp.log(sampling_B.min_p_B)
    return jnp.where(kept_BV >= min_logit_B[:, None], kept_BV, -jnp.inf)


def _top_k(x_BV: jax.Array, sampling_B: SamplingParams) -> jax.Array:
    min_logit_B1 = threshold(x_BV, jnp.ones((1, 1), jnp.int32), jnp.maximum(sampling_B.top_k_B, 1))[:, None]
    return jnp.where((x_BV >= min_logit_B1) | (sampling_B.top_k_B < 1)[:, None], x_BV, -jnp.inf)


def _top_p(x_BV: jax.Array, sampling_B: SamplingParams) -> jax.Array:
    # A row without a most likely token (NaN, or all -inf) is returned unchanged.
    mass_BV = jnp.exp(x_BV - jnp.max(x_BV, axis=-1, keepdims=True))
    # Above 0, so that the most likely token, whose mass is 1, is always kept.
    min_mass_B = jnp.maximum(sampling_B.top_p_B * _total(mass_BV), jnp.finfo(jnp.float32).tiny)
    min_logit_B1 = threshold(x_BV, mass_BV, min_mass_B)[:, None]
    return jnp.where((x_BV >= min_logit_B1) | (sampling_B.top_p_B >= 1)[:, None], x_BV, -jnp.inf)


def threshold(x_BV: jax.Array, weight_BV: jax.Array, min_sum_B: jax.Array) -> jax.Array:
    """The smallest value per row above which the weights sum to less than `min_sum_B` (> 0).

    `weight_BV` is [B, V] or [1, 1] and not negative. The result is exact and needs no sort: the order of
    floats is the order of their bits read as integers (inverted for negative numbers), so that 32 bisections
    of the integers between -inf and inf find it. The sums are taken in one fixed order, and adding a
    nonnegative number never decreases a rounded sum, so that the searched predicate is monotone in spite of
    rounding.
    """

    def bisect(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds
        middle_B = (low_B & high_B) + ((low_B ^ high_B) >> 1)  # the mean; a sum would overflow
        above_BV = jnp.where(x_BV > _float(middle_B)[:, None], weight_BV, 0)
        below_B = _total(above_BV) < min_sum_B
        return jnp.where(below_B, low_B, middle_B + 1), jnp.where(below_B, middle_B, high_B)

    B, infinity = len(min_sum_B), jnp.int32(0x7F800000)
    bounds = jnp.full(B, -infinity - 1), jnp.full(B, infinity)
    return _float(jax.lax.fori_loop(0, 32, bisect, bounds)[1])


def _float(ordered_B: jax.Array) -> jax.Array:
    """The float32 whose rank in the order of all float32 is `ordered_B`."""
    return jax.lax.bitcast_convert_type(ordered_B ^ ((ordered_B >> 31) & 0x7FFFFFFF), jnp.float32)


def _total(x_BV: jax.Array) -> jax.Array:
    """Sum_B, computed in lanes, so that rounding errors grow with V / 128."""
    B, V = x_BV.shape
    if V % LANES:
        return jnp.sum(x_BV, axis=-1)
    return jnp.sum(jnp.sum(x_BV.reshape(B, -1, LANES), axis=1), axis=-1)
