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
    """Settings whose ramp goes through the pairs on it; None if all frequencies stay."""
    factor = float(divisors_R.max())
    if factor <= 1 + _TOLERANCE:
        return None
    # kept = 0 where the frequency is divided by the factor, 1 where it stays, and linear between.
    kept_R = (1 / divisors_R - 1 / factor) / (1 - 1 / factor)
    start, end = _ramp(kept_R, cycles_R)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _snapped(_ORIGINAL_TOK * start),
        "high_freq_factor": _snapped(_ORIGINAL_TOK * end),
        "original_max_position_embeddings": _ORIGINAL_TOK,
    }


def _snapped(value: float) -> float:
    """The number of three decimals that it stands for; from float32 factors 1 comes back as 1.000001."""
    return round(value, 3) if abs(value - round(value, 3)) < 1e-5 else value


def _ramp(kept_R: np.ndarray, cycles_R: np.ndarray) -> tuple[float, float]:
    """The frequencies where the ramp leaves 0 and reaches 1; with fewer than two pairs on it, one of many."""
    on = np.flatnonzero((kept_R > _TOLERANCE) & (kept_R < 1 - _TOLERANCE))
    start = float(cycles_R[kept_R <= _TOLERANCE].max(initial=0.0))
    end = float(cycles_R[kept_R >= 1 - _TOLERANCE].min(initial=math.inf))
    if len(on) >= 2:
        first, last = on[0], on[-1]
        slope = (kept_R[first] - kept_R[last]) / (cycles_R[first] - cycles_R[last])
        start = float(cycles_R[last] - kept_R[last] / slope)
        return start, float(start + 1 / slope)
    if len(on) == 1:
        kept, cycles = float(kept_R[on[0]]), float(cycles_R[on[0]])
        if (far := start + (cycles - start) / kept) <= end:
            return start, far
        return (cycles - kept * end) / (1 - kept), end
    return start, end if math.isfinite(end) else 2 * start


def _divisors(scaling: Raw, cycles_R: np.ndarray) -> np.ndarray:
    """What the settings divide each frequency by (as `mixattn.rope.rope_frequencies`)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept_R = np.clip((_ORIGINAL_TOK * cycles_R - low) / (high - low), 0, 1)
    return 1 / (kept_R + (1 - kept_R) / scaling["factor"])
