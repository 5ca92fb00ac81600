"""Supported architectures: how each one's config.json maps to `ModelConfig`, and its tensor names.

A family is a dict of defaults for the fields that config.json may omit, a reader, a writer, and a tensor-name
table. Sources: the configuration and modelling files of Hugging Face transformers 5.23.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
    defaults: fields that config.json may omit.
    read: raw config -> ModelConfig fields.
    write: config -> raw config, as far as the family can express it.
    tensors: our parameter, within the model or a block -> tensor name; `{i}` is the layer, `{e}` the expert.
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
        raise ValueError("use_bidirectional_attention is set; only causal models are supported")
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
    for field, supported in {
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "word_embed_proj_dim": width,
    }.items():
        if raw.get(field) is not None and raw[field] != supported:
            raise ValueError(f"opt with {field}={raw[field]} is not supported, only {supported}")
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


# Tensor names by parameter. An entry without a parameter in the model is not used.
_LAYER = "model.layers.{i}."
_LLAMA_TENSORS = {
    "embed.table": "model.embed_tokens.weight",
    "final_norm.gain": "model.norm.weight",
    "lm_head.kernel": "lm_head.weight",
    "attention_norm.gain": _LAYER + "input_layernorm.weight",
    "ffn_norm.gain": _LAYER + "post_attention_layernorm.weight",
    "attention.q_norm.gain": _LAYER + "self_attn.q_norm.weight",
    "attention.k_norm.gain": _LAYER + "self_attn.k_norm.weight",
    **{f"attention.{x}.kernel": _LAYER + f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"attention.{x}.bias": _LAYER + f"self_attn.{x}_proj.bias" for x in "qkvo"},
    **{f"ffn.{x}.kernel": _LAYER + f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"ffn.{x}.bias": _LAYER + f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
}
_MIXTRAL_TENSORS = _LLAMA_TENSORS | {
    "ffn.router": _LAYER + "block_sparse_moe.gate.weight",
    "ffn.gate": _LAYER + "block_sparse_moe.experts.{e}.w1.weight",
    "ffn.up": _LAYER + "block_sparse_moe.experts.{e}.w3.weight",
    "ffn.down": _LAYER + "block_sparse_moe.experts.{e}.w2.weight",
}
_GEMMA_TENSORS = _LLAMA_TENSORS | {
    "attention_post_norm.gain": _LAYER + "post_attention_layernorm.weight",
    "ffn_norm.gain": _LAYER + "pre_feedforward_layernorm.weight",
    "ffn_post_norm.gain": _LAYER + "post_feedforward_layernorm.weight",
}
_DECODER = "model.decoder."
_OPT_BLOCK = _DECODER + "layers.{i}."
_OPT_PARTS = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
_OPT_TENSORS = {
    "embed.table": _DECODER + "embed_tokens.weight",
    "embed.positions": _DECODER + "embed_positions.weight",
    "lm_head.kernel": "lm_head.weight",
    "final_norm.gain": _DECODER + "final_layer_norm.weight",
    "final_norm.bias": _DECODER + "final_layer_norm.bias",
    "attention_norm.gain": _OPT_BLOCK + "self_attn_layer_norm.weight",
    "attention_norm.bias": _OPT_BLOCK + "self_attn_layer_norm.bias",
    "ffn_norm.gain": _OPT_BLOCK + "final_layer_norm.weight",
    "ffn_norm.bias": _OPT_BLOCK + "final_layer_norm.bias",
    **{f"{ours}.kernel": f"{_OPT_BLOCK}{theirs}.weight" for ours, theirs in _OPT_PARTS.items()},
    **{f"{ours}.bias": f"{_OPT_BLOCK}{theirs}.bias" for ours, theirs in _OPT_PARTS.items()},
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
    "llama": Family("LlamaForCausalLM", _LLAMA, _read_llama, _write_llama, _LLAMA_TENSORS),
    "mistral": Family("MistralForCausalLM", _MISTRAL, _read_mistral, _write_mistral, _LLAMA_TENSORS),
    "mixtral": Family(
        "MixtralForCausalLM",
        _MISTRAL
        | {"sliding_window": None, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2}
        | {"rope_theta": 1e6},
        _read_mixtral,
        _write_mixtral,
        _MIXTRAL_TENSORS,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", _QWEN | {"sliding_window": 4096}, _read_qwen2, _write_qwen2, _LLAMA_TENSORS
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _QWEN | {"sliding_window": 4096, "head_dim": 128},
        _read_qwen3,
        _write_qwen3,
        _LLAMA_TENSORS,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _read_gemma2,
        _write_gemma2,
        _GEMMA_TENSORS,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA | {"max_position_embeddings": 131_072, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        _read_gemma3,
        _write_gemma2,
        _GEMMA_TENSORS,
    ),
    "opt": Family(
        "OPTForCausalLM",
        {"max_position_embeddings": 2048, "activation_function": "relu", "tie_word_embeddings": True},
        _read_opt,
        _write_opt,
        _OPT_TENSORS,
    ),
}
