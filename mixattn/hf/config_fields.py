"""Fields of config.json that most families share, in both directions."""

from collections.abc import Callable

from mixattn.hf.raw_fields import Raw
from mixattn.hf.rope_fields import read_rope, write_rope
from mixattn.spec import ModelConfig

ACTIVATION_OF = {  # config.json -> ModelConfig
    "silu": "silu",
    "swish": "silu",
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


def read_common(raw: Raw, *, partial: bool = False, local: bool = False) -> Raw:
    """The `ModelConfig` fields that every family except OPT spells alike.

    Args:
      partial, local: see `read_rope`.

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
        **read_rope(raw, partial=partial, local=local),
    }


def write_common(config: ModelConfig, *, partial: bool = False, local: bool = False) -> Raw:
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
        **write_rope(config, partial=partial, local=local),
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
    return windows_of(kinds, window, n)


def one_window(raw: Raw) -> Raw:
    """The same where all layers slide or none does, and `layer_types` is ignored."""
    n = raw["num_hidden_layers"]
    return windows_of(["sliding_attention"] * n, raw.get("sliding_window"), n)


def windows_of(kinds: list[str], window: int | None, n: int) -> Raw:
    """Wiring and window of `n` layers of these kinds.

    Raises:
      ValueError: a wrong number of layers, or an unknown kind.
    """
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
