"""Llama 3's rotary scaling out of the factors that a GGUF file stores instead of its settings.

`rope_freqs.weight` holds one number per rotated pair, by which the pair's frequency is divided. Where it is
neither 1 nor the common factor, its inverse is linear in the frequency; two such pairs give the ramp back.

Axes: R rotated pairs of a head.
"""

import math

import numpy as np

from mixattn.hf.config_fields import Raw
from mixattn.hf.gguf_file import GGUFFile

_ORIGINAL_TOK = 8192  # any value serves: only original / low and original / high are used
_TOLERANCE = 1e-3


def llama3_scaling(file: GGUFFile, theta: float, head_dim: int) -> Raw:
    """The `rope_scaling` of config.json that divides the frequencies by the stored factors.

    Raises:
      ValueError: no such setting reproduces them.
    """
    divisors_R = file.read("rope_freqs.weight", np.dtype(np.float64)).ravel()
    if divisors_R.size != head_dim // 2:
        raise ValueError(f"{file.path}: rope_freqs has {divisors_R.size} factors for heads of {head_dim}")
    cycles_R = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)  # per token
    scaling = _solve(divisors_R, cycles_R)
    if scaling is None or not np.allclose(_divisors(scaling, cycles_R), divisors_R, rtol=_TOLERANCE):
        raise ValueError(f"{file.path}: the factors of rope_freqs are not those of Llama 3's scaling")
    return scaling


def _solve(divisors_R: np.ndarray, cycles_R: np.ndarray) -> Raw | None:
    """Settings whose ramp goes through the first and the last pair on it; Llama 3.1's with fewer pairs."""
    factor = float(divisors_R.max())
    if factor <= 1 + _TOLERANCE:
        return None
    # kept = 0 where the frequency is divided by the factor, 1 where it stays, and linear between.
    kept_R = (1 / divisors_R - 1 / factor) / (1 - 1 / factor)
    ramp = np.flatnonzero((kept_R > _TOLERANCE) & (kept_R < 1 - _TOLERANCE))
    low, high = 1.0, 4.0
    if len(ramp) >= 2:
        first, last = ramp[0], ramp[-1]
        slope = (kept_R[first] - kept_R[last]) / (cycles_R[first] - cycles_R[last])
        start = cycles_R[last] - kept_R[last] / slope  # where the ramp leaves 0
        low, high = _ORIGINAL_TOK * start, _ORIGINAL_TOK * (start + 1 / slope)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": round(float(low), 4),
        "high_freq_factor": round(float(high), 4),
        "original_max_position_embeddings": _ORIGINAL_TOK,
    }


def _divisors(scaling: Raw, cycles_R: np.ndarray) -> np.ndarray:
    """What the settings divide each frequency by (as `mixattn.layers.rope_frequencies`)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept_R = np.clip((_ORIGINAL_TOK * cycles_R - low) / (high - low), 0, 1)
    return 1 / (kept_R + (1 - kept_R) / scaling["factor"])
