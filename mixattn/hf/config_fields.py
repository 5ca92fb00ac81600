"""What most families say of a model in the same words of their config.json, read and written."""

from collections.abc import Callable
from typing import Any

from mixattn.hf.rope import read_rope, write_rope
from mixattn.spec import ModelConfig

type Raw = dict[str, Any]

ACTIVATION_OF = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "relu2": "relu2",
}
NAME_OF = {
    "silu": "silu",
    "gelu": "gelu_pytorch_tanh",
    "gelu_exact": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}


def read_common(raw: Raw) -> Raw:
    """What all families but OPT say in the same words."""
    heads = raw["num_attention_heads"]
    act = raw.get("hidden_activation") or raw["hidden_act"]
    if act not in ACTIVATION_OF:
        raise ValueError(f"hidden_act {act!r} is none of {', '.join(ACTIVATION_OF)}")
    return {
        "n_layers": raw["num_hidden_layers"],
        "d_model": raw["hidden_size"],
        "n_heads": heads,
        "n_kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "d_ff": raw["intermediate_size"],
        "vocab_size": raw["vocab_size"],
        "norm_eps": raw["rms_norm_eps"],
        "activation": ACTIVATION_OF[act],
        "tied": raw["tie_word_embeddings"],
        "max_positions": raw["max_position_embeddings"],
        **read_rope(raw),
    }


def write_common(config: ModelConfig) -> Raw:
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
    """Wiring and window of unshared layers; `layer_types` decides where it is given, else `slides`."""
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
    return [layer.window is not None for layer in config.layers]


def layer_types(config: ModelConfig) -> Raw:
    kinds = ["sliding_attention" if slides else "full_attention" for slides in slides(config)]
    return {"layer_types": kinds, "sliding_window": config.window}
