"""The type and range that each field of a `ModelConfig` must have, so that a wrong file names its field.

Upper bounds are far above any model; they keep a damaged file from taking all memory or time.
"""

import dataclasses
import math
from numbers import Integral, Real
from typing import Any

_COUNTS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "window")
_LEAST = dict.fromkeys((*_COUNTS, "max_positions"), 1) | {"rope_original": 2}
_MOST = {"n_layers": 4096, "n_experts": 65_536}
_SIZE = 2**31 - 1  # the device's int32
_POSITIVE = {"rope_factor", "rope_low", "rope_high", "rope_fast", "rope_slow", "embedding_scale"}


def check(config: Any) -> None:
    """Checks every field of a dataclass by the type that it is declared with.

    Raises:
      ValueError: names the field, its value and what it must be.
    """
    for field in dataclasses.fields(config):
        if rule := _broken_rule(field.name, field.type, getattr(config, field.name)):
            raise ValueError(f"{field.name} is {getattr(config, field.name)!r}; it must be {rule}")


def _broken_rule(name: str, kind: Any, value: Any) -> str:
    """What the value must be, if it is not."""
    if kind is int:
        return _broken_whole(name, value)
    if kind is float:
        return _broken_number(name, value)
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is str:
        return "" if isinstance(value, str) else "a text"
    item = Integral if kind == tuple[int, ...] else Real
    whole = isinstance(value, tuple) and all(isinstance(x, item) and not isinstance(x, bool) for x in value)
    if item is Real:
        return "" if whole and all(_number(x) and x > 0 for x in value) else "a tuple of positive numbers"
    return "" if whole else "a tuple of whole numbers"


def _broken_whole(name: str, value: Any) -> str:
    low, high = _LEAST.get(name, 0), _MOST.get(name, _SIZE)
    if not isinstance(value, Integral) or isinstance(value, bool):
        return "a whole number"
    if int(value) < low:
        return f"at least {low}"
    return f"at most {high}" if int(value) > high else ""


def _broken_number(name: str, value: Any) -> str:
    if not _number(value):
        return "a finite number"
    if name == "rope_theta" and value <= 1:
        return "above 1"
    if name in _POSITIVE and value <= 0:
        return "above 0"
    return "at least 0" if value < 0 else ""


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
