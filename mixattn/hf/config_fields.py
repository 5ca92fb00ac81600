"""Fields of config.json that most families share, in both directions, and their rotary settings.

Files of different ages spell rotary settings in three ways. All three are read; the first, which every
version understands, is written:

    "rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, ...}, ...
    "rope_parameters": {"rope_theta": 1e4, "rope_type": ...}
    "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}
"""

from collections.abc import Callable
from typing import Any

from mixattn.spec import ModelConfig

type Raw = dict[str, Any]

ACTIVATION_OF = {  # config.json -> ModelConfig
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "relu2": "relu2",
}
NAME_OF = {  # ModelConfig -> config.json
    "silu": "silu",
    "gelu": "gelu_pytorch_tanh",
    "gelu_exact": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}


def read_common(raw: Raw) -> Raw:
    """The `ModelConfig` fields that every family except OPT spells alike.

    Raises:
      ValueError: an unknown activation or rotary scaling.
    """
    heads = raw["num_attention_heads"]
    activation = raw.get("hidden_activation") or raw["hidden_act"]
    if activation not in ACTIVATION_OF:
        raise ValueError(f"hidden_act is {activation!r}; it must be one of {', '.join(ACTIVATION_OF)}")
    return {
        "n_layers": raw["num_hidden_layers"],
        "d_model": raw["hidden_size"],
        "n_heads": heads,
        "n_kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "d_ff": raw["intermediate_size"],
        "vocab_size": raw["vocab_size"],
        "norm_eps": raw["rms_norm_eps"],
        "activation": ACTIVATION_OF[activation],
        "tied": raw["tie_word_embeddings"],
        "max_positions": raw["max_position_embeddings"],
        **read_rope(raw),
    }


def write_common(config: ModelConfig) -> Raw:
    """The inverse of `read_common`."""
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": NAME_OF[config.activation],
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_positions,
        **write_rope(config),
    }


def windows(raw: Raw, slides: Callable[[int], bool]) -> Raw:
    """Wiring and window of a model without K/V sharing.

    Args:
      slides: whether a layer slides, used when config.json has no `layer_types`.

    Raises:
      ValueError: `layer_types` has the wrong length or an unknown kind.
    """
    window, n = raw.get("sliding_window"), raw["num_hidden_layers"]
    kinds = raw.get("layer_types") or [
        "sliding_attention" if slides(i) else "full_attention" for i in range(n)
    ]
    if len(kinds) != n or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise ValueError(f"layer_types {kinds} does not name {n} sliding or full layers")
    if window is None:
        return {"kv_wiring": ""}
    return {
        "kv_wiring": "_".join(f"{i}{'s' * (kind[0] == 's')}" for i, kind in enumerate(kinds)),
        "window": window,
    }


def slides(config: ModelConfig) -> list[bool]:
    """Whether each layer slides."""
    return [layer.slides for layer in config.layers]


def layer_types(config: ModelConfig) -> Raw:
    """The inverse of `windows`."""
    kinds = ["sliding_attention" if slides else "full_attention" for slides in slides(config)]
    return {"layer_types": kinds, "sliding_window": config.window}


def read_rope(raw: Raw) -> Raw:
    """The rotary fields of `ModelConfig`.

    Raises:
      ValueError: a scaling other than linear and llama3.
    """
    parameters: Raw = raw.get("rope_parameters") or {}
    full: Raw = dict(parameters.get("full_attention", parameters))
    local = parameters.get("sliding_attention", {}).get("rope_theta", raw.get("rope_local_base_freq", 0.0))
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
    """The inverse of `read_rope`, in the oldest spelling."""
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
