"""The types that the fields of a config.json must have, so that a wrong value is refused by its name.

A field that is null counts as absent where transformers derives it, and is refused elsewhere.
"""

import math
from collections.abc import Mapping
from typing import Any

type Raw = dict[str, Any]

_DEPTHS = ("num_hidden_layers",)
_SIZES = (
    *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "vocab_size", "max_position_embeddings", "original_max_position_embeddings"),
    *("sliding_window", "sliding_window_pattern", "ffn_dim", "word_embed_proj_dim", "num_local_experts"),
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"),
)
_COUNTS = ("max_window_layers",)  # from 0 up
_NUMBERS = (
    *("rms_norm_eps", "rope_theta", "rope_local_base_freq", "partial_rotary_factor"),
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
)
_FLAGS = (
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob"),
    *("do_layer_norm_before", "_remove_final_layer_norm", "enable_bias", "layer_norm_elementwise_affine"),
    "use_bidirectional_attention",
)
_TEXTS = ("hidden_act", "hidden_activation", "activation_function", "dtype", "torch_dtype", "model_type")
_OBJECTS = ("rope_scaling", "rope_parameters", "quantization_config")
_LISTS = ("layer_types", "mlp_only_layers")
_MAY_BE_NULL = {
    *("num_key_value_heads", "head_dim", "sliding_window", "sliding_window_pattern", "max_window_layers"),
    *("word_embed_proj_dim", "original_max_position_embeddings", *_NUMBERS, *_FLAGS, *_TEXTS, *_OBJECTS),
    *_LISTS,
} - {"rms_norm_eps", "tie_word_embeddings"}


def check_types(raw: Mapping[str, Any]) -> None:
    """Raises ValueError for the first known field of a wrong type or range."""
    for name, value in raw.items():
        if name in _RULES and not (value is None and name in _MAY_BE_NULL):
            rule = _RULES[name]
            if not _FITS[rule](value):
                raise ValueError(f"{name} is {_shown(value)}; it must be {rule}")


def number(section: Mapping[str, Any], name: str, where: str, default: float | None = None) -> float:
    """A finite number above 0 of a section such as `rope_scaling`.

    Raises:
      ValueError: it is missing and has no default, or is no such number.
    """
    value: Any = section.get(name)
    if value is None and default is not None:
        return default
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{where}.{name} is {_shown(value)}; it must be a number above 0")
    return float(value)


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_FITS = {
    "a whole number from 1 to 4096": lambda value: _is_whole(value) and 1 <= value <= 4096,
    "a whole number from 1 up": lambda value: _is_whole(value) and 1 <= value < 2**31,
    "a whole number from 0 up": lambda value: _is_whole(value) and 0 <= value < 2**31,
    "a number from 0 up": lambda value: _is_number(value) and value >= 0,
    "true or false": lambda value: isinstance(value, bool),
    "a text": lambda value: isinstance(value, str),
    "an object": lambda value: isinstance(value, dict),
    "a list of texts or of whole numbers": lambda value: (
        isinstance(value, list)
        and (all(isinstance(x, str) for x in value) or all(_is_whole(x) for x in value))
    ),
}
_RULES = {
    name: rule
    for rule, names in zip(
        _FITS, (_DEPTHS, _SIZES, _COUNTS, _NUMBERS, _FLAGS, _TEXTS, _OBJECTS, _LISTS), strict=True
    )
    for name in names
}
