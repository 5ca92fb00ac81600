"""Rotary position embedding and the ways to stretch it over longer contexts.

    linear     divides all frequencies by a factor
    llama3     divides low ones, with a ramp between two wavelengths (the Llama 3.1 release)
    yarn       the same between two numbers of rotations, and scales attention (arXiv 2309.00071)
    longrope   divides each by its own factor, one list up to the original context and one beyond it
               (arXiv 2402.13753)
    dynamic    raises the base with the length of the sequence beyond the original context

The last two depend on how long a sequence gets. A key stays rotated as it was stored, so one length is fixed
for all of it: `rope_length` of the config, and see `for_length`.

Axes: B rows, T tokens, N heads, H head size, R rotated pairs of a head.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from mixattn.spec import ModelConfig
from pallas_kernels.typing import accumulator_dtype

type RopeTable = tuple[jax.Array, jax.Array]  # cosine and sine, float32 [B, T, 1, R], float64 in float64

BY_LENGTH = ("longrope", "dynamic")


def rope_tables(
    config: ModelConfig, positions_BT: jax.Array, length: int = 0
) -> dict[bool, RopeTable | None]:
    """The rotations of full (False) and sliding (True) layers; `length`: see `rope_frequencies`."""
    if config.positions != "rope":
        return {False: None, True: None}
    return {sliding: _cos_sin(config, positions_BT, length, sliding=sliding) for sliding in (False, True)}


def _cos_sin(config: ModelConfig, positions_BT: jax.Array, length: int, *, sliding: bool) -> RopeTable:
    freq_R = rope_frequencies(config, sliding=sliding, length=length)
    cos, sin = rope_cos_sin(positions_BT, freq_R.astype(accumulator_dtype(jnp.dtype(config.dtype))))
    scale = 1.0 if _own_base(config, sliding) else attention_factor(config)
    return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


def rope_frequencies(config: ModelConfig, *, sliding: bool, length: int = 0) -> np.ndarray:
    """Radians per position of each rotated pair, float64 [R].

    Args:
      length: tokens of the longest sequence, for the scalings that depend on it; 0 = the model's context.

    Source: RoFormer (arXiv 2104.09864), equation 15, and the papers above.
    """
    own_base = _own_base(config, sliding)
    theta = config.rope_theta_local if own_base else config.rope_theta
    exponent_R = np.arange(0, config.rotated, 2, dtype=np.float64) / config.rotated
    freq_R = theta**-exponent_R
    if not own_base:
        length = length or config.max_positions
        match config.rope_scaling:
            case "linear":
                freq_R = freq_R / config.rope_factor
            case "llama3":
                freq_R = _ramped(freq_R, _kept_llama3(config, freq_R), config.rope_factor)
            case "yarn":
                freq_R = _ramped(freq_R, _kept_yarn(config), config.rope_factor)
            case "longrope":
                factors = config.rope_long if length > config.rope_original else config.rope_short
                freq_R = freq_R / np.asarray(factors)
            case "dynamic":
                freq_R = _stretched_theta(config, length) ** -exponent_R
    return freq_R


def attention_factor(config: ModelConfig) -> float:
    """What cosine and sine are multiplied by, so that scores grow with its square."""
    factor = config.rope_factor
    if config.rope_scaling not in ("yarn", "longrope"):
        return 1.0
    if config.rope_attention or factor <= 1:
        return config.rope_attention or 1.0
    if config.rope_scaling == "yarn":
        return 0.1 * math.log(factor) + 1
    return math.sqrt(1 + math.log(factor) / math.log(config.rope_original))


def for_length(config: ModelConfig, tokens: int) -> ModelConfig:
    """The config with which sequences of at most `tokens` tokens are computed; mostly the same."""
    if config.positions != "rope" or config.rope_scaling not in BY_LENGTH or config.rope_length:
        return config
    return dataclasses.replace(config, rope_length=tokens)


def _own_base(config: ModelConfig, sliding: bool) -> bool:
    return sliding and config.rope_theta_local > 0


def _ramped(freq_R: np.ndarray, kept_R: np.ndarray, factor: float) -> np.ndarray:
    """Frequencies where `kept` is 1, their `factor`-th part where it is 0, and a mixture between."""
    return kept_R * freq_R + (1 - kept_R) * freq_R / factor


def _kept_llama3(config: ModelConfig, freq_R: np.ndarray) -> np.ndarray:
    periods_R = config.rope_original * freq_R / (2 * np.pi)  # within the original context
    return np.clip((periods_R - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)


def _kept_yarn(config: ModelConfig) -> np.ndarray:
    """1 for pairs that rotate more than `rope_fast` times in the original context, 0 below `rope_slow`."""
    size = config.rotated

    def pair(rotations: float) -> float:
        wavelength = config.rope_original / (rotations * 2 * math.pi)
        return size * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low, high = pair(config.rope_fast), pair(config.rope_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 1e-3
    return 1 - np.clip((np.arange(size // 2) - low) / width, 0, 1)


def _stretched_theta(config: ModelConfig, length: int) -> float:
    size, context = config.rotated, config.max_positions
    grown = config.rope_factor * max(length, context) / context - (config.rope_factor - 1)
    return config.rope_theta * grown ** (size / (size - 2))


def rope_cos_sin(positions_BT: jax.Array, freq_R: np.ndarray) -> RopeTable:
    """Cosine and sine of every position's rotation, in the dtype of `freq_R`."""
    angle_BT1R = positions_BT.astype(freq_R.dtype)[:, :, None, None] * jnp.asarray(freq_R)[None, None, None]
    return jnp.cos(angle_BT1R), jnp.sin(angle_BT1R)


def apply_rope(x_BTNH: jax.Array, rope: RopeTable | None) -> jax.Array:
    """Rotates the pairs (i, i + R) of the first 2R entries of each head ("rotate half"); None = unchanged."""
    if rope is None:
        return x_BTNH
    cos, sin = rope
    R = cos.shape[-1]
    a, b, rest = jnp.split(x_BTNH, (R, 2 * R), axis=-1)
    a, b = a.astype(cos.dtype), b.astype(cos.dtype)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
    return jnp.concatenate([rotated, rest], axis=-1)
