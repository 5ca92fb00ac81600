"""Published architectures as data: how each one's config.json reads as a `ModelConfig`, and what it calls
its tensors.

A family is a dict of defaults (config.json leaves them out), a reader, a writer, and a table of names.
Sources: the configuration and modelling files of Hugging Face transformers 5.23.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mixattn.hf import names
from mixattn.hf.config_fields import (
    ACTIVATION_OF,
    NAME_OF,
    Raw,
    layer_types,
    read_common,
    slides,
    windows,
    write_common,
)
from mixattn.spec import ModelConfig


class Family(NamedTuple):
    """Attributes:
    architecture: the class name in config.json.
    defaults: fields that config.json may leave out.
    read: raw config -> ModelConfig fields.
    write: config -> raw config, as far as the family can say it.
    tensors: our parameter within the model or a block -> tensor, `{i}` the layer, `{e}` the expert.
    """

    architecture: str
    defaults: Raw
    read: Callable[[Raw], Raw]
    write: Callable[[ModelConfig], Raw]
    tensors: Mapping[str, str]


def _read_llama(raw: Raw) -> Raw:
    biased = raw["attention_bias"]
    return read_common(raw) | {"qkv_bias": biased, "out_bias": biased, "ffn_bias": raw["mlp_bias"]}


def _write_llama(config: ModelConfig) -> Raw:
    return write_common(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}


def _read_mistral(raw: Raw) -> Raw:
    return read_common(raw) | windows(raw, lambda i: True)


def _write_mistral(config: ModelConfig) -> Raw:
    return write_common(config) | {"sliding_window": config.window if all(slides(config)) else None}


def _read_mixtral(raw: Raw) -> Raw:
    return _read_mistral(raw) | {
        "n_experts": raw["num_local_experts"],
        "experts_per_token": raw["num_experts_per_tok"],
    }


def _write_mixtral(config: ModelConfig) -> Raw:
    experts = {"num_local_experts": config.n_experts, "num_experts_per_tok": config.experts_per_token}
    return _write_mistral(config) | experts


def _read_qwen2(raw: Raw) -> Raw:
    sliding = raw if raw["use_sliding_window"] else raw | {"sliding_window": None}
    return read_common(raw) | windows(sliding, lambda i: i >= raw["max_window_layers"]) | {"qkv_bias": True}


def _write_qwen2(config: ModelConfig) -> Raw:
    return write_common(config) | layer_types(config) | {"use_sliding_window": any(slides(config))}


def _read_qwen3(raw: Raw) -> Raw:
    biased = raw["attention_bias"]
    return _read_qwen2(raw) | {"qkv_bias": biased, "out_bias": biased, "qk_norm": True}


def _write_qwen3(config: ModelConfig) -> Raw:
    return _write_qwen2(config) | {"attention_bias": config.qkv_bias}


def _read_gemma2(raw: Raw) -> Raw:
    if raw.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is set; only causal models are read")
    biased = raw["attention_bias"]
    return (
        read_common(raw)
        | windows(raw, lambda i: i % 2 == 0)
        | {
            "qkv_bias": biased,
            "out_bias": biased,
            "attention_scale": raw["query_pre_attn_scalar"] ** -0.5,
            "attention_softcap": raw.get("attn_logit_softcapping") or 0.0,
            "logit_softcap": raw.get("final_logit_softcapping") or 0.0,
            "embedding_scale": math.sqrt(raw["hidden_size"]),
            "norm_unit_offset": True,
            "post_norms": True,
        }
    )


def _write_gemma2(config: ModelConfig) -> Raw:
    raw = write_common(config) | layer_types(config)
    return raw | {
        "hidden_activation": raw.pop("hidden_act"),
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round((config.attention_scale or config.head_dim**-0.5) ** -2),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
    }


def _read_gemma3(raw: Raw) -> Raw:
    period = raw.get("sliding_window_pattern") or 6
    types = windows(raw, lambda i: (i + 1) % period != 0)
    return _read_gemma2(raw) | types | {"qk_norm": True}


def _read_opt(raw: Raw) -> Raw:
    width = raw["hidden_size"]
    for field, only in {
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "word_embed_proj_dim": width,
    }.items():
        if (raw.get(field) if raw.get(field) is not None else only) != only:
            raise ValueError(f"opt with {field}={raw[field]} is not supported, only {only}")
    return {
        "n_layers": raw["num_hidden_layers"],
        "d_model": width,
        "n_heads": raw["num_attention_heads"],
        "n_kv_heads": raw["num_attention_heads"],
        "head_dim": width // raw["num_attention_heads"],
        "d_ff": raw["ffn_dim"],
        "vocab_size": raw["vocab_size"],
        "positions": "learned",
        "position_offset": 2,
        "max_positions": raw["max_position_embeddings"],
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": ACTIVATION_OF[raw["activation_function"]],
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "tied": raw["tie_word_embeddings"],
    }


def _write_opt(config: ModelConfig) -> Raw:
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.d_model,
        "num_attention_heads": config.n_heads,
        "ffn_dim": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "activation_function": NAME_OF[config.activation],
        "tie_word_embeddings": config.tied,
    }


_LLAMA = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
}
_MISTRAL = _LLAMA | {"max_position_embeddings": 131_072, "sliding_window": 4096, "num_key_value_heads": 8}
_QWEN = _LLAMA | {"max_position_embeddings": 32_768, "use_sliding_window": False, "max_window_layers": 28}
_GEMMA = _LLAMA | {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "head_dim": 256,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _LLAMA, _read_llama, _write_llama, names.LLAMA),
    "mistral": Family("MistralForCausalLM", _MISTRAL, _read_mistral, _write_mistral, names.LLAMA),
    "mixtral": Family(
        "MixtralForCausalLM",
        _MISTRAL
        | {"sliding_window": None, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2}
        | {"rope_theta": 1e6},
        _read_mixtral,
        _write_mixtral,
        names.MIXTRAL,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", _QWEN | {"sliding_window": 4096}, _read_qwen2, _write_qwen2, names.LLAMA
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _QWEN | {"sliding_window": 4096, "head_dim": 128},
        _read_qwen3,
        _write_qwen3,
        names.LLAMA,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _read_gemma2,
        _write_gemma2,
        names.GEMMA,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA | {"max_position_embeddings": 131_072, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        _read_gemma3,
        _write_gemma2,
        names.GEMMA,
    ),
    "opt": Family(
        "OPTForCausalLM",
        {"max_position_embeddings": 2048, "activation_function": "relu", "tie_word_embeddings": True},
        _read_opt,
        _write_opt,
        names.OPT,
    ),
}
