"""Rotary settings of a config.json, in both directions.

Files of different ages spell them in three ways. All three are read; the first, which every version
understands, is written:

    "rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, ...}, ...
    "rope_parameters": {"rope_theta": 1e4, "rope_type": ...}
    "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}       gemma3_text only
"""

import math
from collections.abc import Mapping
from typing import Any

from mixattn.hf.raw_fields import Raw, number
from mixattn.spec import ModelConfig

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_NESTED = ("full_attention", "sliding_attention")


def read_rope(raw: Raw, *, partial: bool = False, local: bool = False) -> Raw:
    """The rotary fields of `ModelConfig`.

    Args:
      partial: the family can rotate a fraction of each head.
      local: sliding layers of the family have a base of their own.

    Raises:
      ValueError: an unknown scaling, a missing or bad setting, or one that the family ignores.
    """
    parameters: Raw = raw.get("rope_parameters") or {}
    if any(name in parameters for name in _NESTED) and not local:
        raise ValueError("rope_parameters differ by kind of layer, which only gemma3_text can have")
    full, sliding = parameters, {}
    if local and any(name in parameters for name in _NESTED):
        full, sliding = (_section(parameters, name) for name in _NESTED)
    if _kind(sliding) != "default":
        raise ValueError(f"rope_parameters.sliding_attention has type {_kind(sliding)!r}, not 'default'")
    fraction = _given(full, raw, "partial_rotary_factor", 1.0)
    if fraction != 1 and not partial:
        raise ValueError(f"partial_rotary_factor is {fraction}, but this family rotates whole heads")
    fields: Raw = {"rope_theta": _given(full, raw, "rope_theta", 10_000.0), "rope_fraction": fraction}
    if local:
        base = number(sliding, "rope_theta", "rope_parameters.sliding_attention", 0) or raw.get(
            "rope_local_base_freq"
        )
        fields["rope_theta_local"] = float(base or 0.0)
    scaling: Raw = raw.get("rope_scaling") or full
    return fields | _read_scaling(raw, scaling)


def _section(parameters: Raw, name: str) -> Raw:
    section = parameters.get(name) or {}
    if not isinstance(section, dict):
        raise ValueError(f"rope_parameters.{name} is {section!r}; it must be an object")
    return section


def _given(section: Raw, raw: Raw, name: str, default: float) -> float:
    return number(section, name, "rope_parameters", 0) or number(raw, name, "config.json", default)


def _kind(scaling: Mapping[str, Any]) -> str:
    kind = scaling.get("rope_type", scaling.get("type")) or "default"
    if not isinstance(kind, str):
        raise ValueError(f"rope_scaling.rope_type is {kind!r}; it must be a text")
    return {"su": "longrope"}.get(kind, kind)


def _read_scaling(raw: Raw, scaling: Raw) -> Raw:
    kind, where = _kind(scaling), "rope_scaling"
    if kind not in KINDS:
        raise ValueError(f"rope type {kind!r} is not supported; known are {', '.join(KINDS)}")
    if kind == "default":
        return {}
    if kind in ("linear", "dynamic"):
        return {"rope_scaling": kind, "rope_factor": number(scaling, "factor", where)}
    context = number(raw, "max_position_embeddings", "config.json")
    original = number(raw, "original_max_position_embeddings", "config.json", 0) or number(
        scaling, "original_max_position_embeddings", where, context
    )
    fields: Raw = {"rope_scaling": kind, "rope_original": _whole(original, where)}
    if kind == "llama3":
        return fields | {
            "rope_factor": number(scaling, "factor", where),
            "rope_low": number(scaling, "low_freq_factor", where),
            "rope_high": number(scaling, "high_freq_factor", where),
        }
    fields["rope_factor"] = number(scaling, "factor", where, context / original)
    fields["rope_attention"] = number(scaling, "attention_factor", where, 0)
    if kind == "longrope":
        return fields | {
            f"rope_{name}": _factors(scaling, f"{name}_factor", where) for name in ("short", "long")
        }
    return fields | _read_yarn(scaling, fields, where)


def _whole(value: float, where: str) -> int:
    if value != int(value):
        raise ValueError(f"{where}.original_max_position_embeddings is {value}; it must be a whole number")
    return int(value)


def _factors(scaling: Raw, name: str, where: str) -> tuple[float, ...]:
    values = scaling.get(name)
    if not isinstance(values, list):
        raise ValueError(f"{where}.{name} is {values!r}; it must be a list of numbers")
    return tuple(number({name: value}, name, where) for value in values)


def _read_yarn(scaling: Raw, fields: Raw, where: str) -> Raw:
    truncate = scaling.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"{where}.truncate is {truncate!r}; it must be true or false")
    over, under = (number(scaling, name, where, 0) for name in ("mscale", "mscale_all_dim"))
    attention, factor = fields["rope_attention"], fields["rope_factor"]
    if not attention and over and under and factor > 1:
        attention = (0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1)
    return {
        "rope_attention": attention,
        "rope_fast": number(scaling, "beta_fast", where, 32.0),
        "rope_slow": number(scaling, "beta_slow", where, 1.0),
        "rope_truncate": truncate,
    }


def write_rope(config: ModelConfig, *, partial: bool = False, local: bool = False) -> Raw:
    """The inverse of `read_rope`, in the oldest spelling. What the family cannot say is left out."""
    raw: Raw = {"rope_theta": config.rope_theta}
    if local and config.rope_theta_local:
        raw["rope_local_base_freq"] = config.rope_theta_local
    if partial and config.rope_fraction != 1:
        raw["partial_rotary_factor"] = config.rope_fraction
    if config.rope_scaling != "none":
        raw["rope_scaling"] = {"rope_type": config.rope_scaling, **_write_scaling(config)}
    return raw


def _write_scaling(config: ModelConfig) -> Raw:
    scaling: Raw = {"factor": config.rope_factor}
    if config.rope_scaling in ("linear", "dynamic"):
        return scaling
    scaling["original_max_position_embeddings"] = config.rope_original
    if config.rope_scaling == "llama3":
        return scaling | {"low_freq_factor": config.rope_low, "high_freq_factor": config.rope_high}
    if config.rope_attention:
        scaling["attention_factor"] = config.rope_attention
    if config.rope_scaling == "longrope":
        return scaling | {"short_factor": list(config.rope_short), "long_factor": list(config.rope_long)}
    shape = {"beta_fast": config.rope_fast, "beta_slow": config.rope_slow}
    return scaling | shape | ({} if config.rope_truncate else {"truncate": False})
