"""Rotary settings, as config.json files of different ages spell them.

    "rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, ...}, ...
    "rope_parameters": {"rope_theta": 1e4, "rope_type": ...}
    "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}

We read all three and write the first, which every version understands.
"""

from typing import Any

from mixattn.spec import ModelConfig

type Raw = dict[str, Any]


def read_rope(raw: Raw) -> Raw:
    """ModelConfig fields.

    Raises:
      ValueError: a scaling other than linear and llama3.
    """
    new: Raw = raw.get("rope_parameters") or {}
    full: Raw = dict(new.get("full_attention", new))
    local = new.get("sliding_attention", {}).get("rope_theta", raw.get("rope_local_base_freq", 0.0))
    scaling: Raw = raw.get("rope_scaling") or full
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    fields: Raw = {
        "rope_theta": float(full.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        "rope_theta_local": float(local or 0.0),
        "rope_fraction": float(full.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0),
    }
    match kind:
        case "default":
            return fields
        case "linear":
            return fields | {"rope_scaling": "linear", "rope_factor": float(scaling["factor"])}
        case "llama3":
            return fields | {
                "rope_scaling": "llama3",
                "rope_factor": float(scaling["factor"]),
                "rope_low": float(scaling["low_freq_factor"]),
                "rope_high": float(scaling["high_freq_factor"]),
                "rope_original": int(scaling["original_max_position_embeddings"]),
            }
    raise ValueError(f"rope type {kind!r} is not supported; known are default, linear, llama3")


def write_rope(config: ModelConfig) -> Raw:
    raw: Raw = {"rope_theta": config.rope_theta}
    if config.rope_theta_local:
        raw["rope_local_base_freq"] = config.rope_theta_local
    if config.rope_fraction != 1:
        raw["partial_rotary_factor"] = config.rope_fraction
    match config.rope_scaling:
        case "linear":
            raw["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_factor}
        case "llama3":
            raw["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": config.rope_factor,
                "low_freq_factor": config.rope_low,
                "high_freq_factor": config.rope_high,
                "original_max_position_embeddings": config.rope_original,
            }
    return raw
