"""Supported architectures: how each one's config.json maps to `ModelConfig`, and its tensor names.

A family is a dict of defaults for the fields that config.json may omit, a reader, a writer, and a tensor-name
table. Sources: the configuration and modelling files of Hugging Face transformers 5.23.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mixattn.hf import family_tensors
from mixattn.hf.config_fields import (
    ACTIVATION_OF,
    NAME_OF,
    layer_types,
    one_window,
    read_common,
    slides,
    windows,
    write_common,
)
from mixattn.hf.raw_fields import Raw
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
    _whole_heads(config)
    return write_common(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}


def _whole_heads(config: ModelConfig) -> None:
    """transformers refuses these families where the width is no multiple of the heads."""
    if config.d_model % config.n_heads:
        raise ValueError(f"it needs a width that {config.n_heads} heads divide, not d_model={config.d_model}")


def _read_mistral(raw: Raw) -> Raw:
    return read_common(raw) | one_window(raw)


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


def _read_qwen3_moe(raw: Raw) -> Raw:
    n, step = raw["num_hidden_layers"], raw["decoder_sparse_step"]
    dense = set(raw.get("mlp_only_layers") or ()) | {i for i in range(n) if (i + 1) % step}
    sliding = raw if raw["use_sliding_window"] else raw | {"sliding_window": None}
    biased = raw["attention_bias"]
    return (
        read_common(raw)
        | one_window(sliding)
        | {
            "qkv_bias": biased,
            "out_bias": biased,
            "qk_norm": True,
            "d_ff": raw["moe_intermediate_size"],
            "d_ff_dense": raw["intermediate_size"],
            "n_experts": raw.get("num_local_experts") or raw["num_experts"],  # as transformers 5 writes it
            "experts_per_token": raw["num_experts_per_tok"],
            "dense_layers": tuple(sorted(dense)),
            "router_order": "softmax_topk" if raw["norm_topk_prob"] else "softmax_topk_raw",
        }
    )


def _write_qwen3_moe(config: ModelConfig) -> Raw:
    sliding = all(slides(config))
    return write_common(config) | {
        "attention_bias": config.qkv_bias,
        "use_sliding_window": sliding,
        "sliding_window": config.window if sliding else None,
        "moe_intermediate_size": config.d_ff,
        "intermediate_size": config.dense_width,
        "num_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
        "mlp_only_layers": list(config.dense_layers),
        "norm_topk_prob": config.router_order != "softmax_topk_raw",
    }


def _read_phi3(raw: Raw) -> Raw:
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "yarn":  # what the first files called it
        raw = raw | {"rope_scaling": {**scaling, "rope_type": "longrope"}}
    elif kind not in (None, "default", "longrope", "su"):
        raise ValueError(f"rope type {kind!r} is not known to phi3, only default and longrope")
    return read_common(raw, partial=True) | one_window(raw)


def _write_phi3(config: ModelConfig) -> Raw:
    if config.rope_scaling not in ("none", "longrope"):
        raise ValueError(f"it has no rope_scaling={config.rope_scaling!r}, only longrope")
    if config.head_dim * config.n_heads != config.d_model:
        raise ValueError(f"its heads are {config.d_model / config.n_heads} wide, not {config.head_dim}")
    raw = write_common(config, partial=True)
    original = config.rope_original if config.rope_scaling == "longrope" else config.max_positions
    window = config.window if all(slides(config)) else None
    return raw | {"sliding_window": window, "original_max_position_embeddings": original}


def _read_olmo2(raw: Raw) -> Raw:
    biased = raw["attention_bias"]
    return read_common(raw) | {
        "qkv_bias": biased,
        "out_bias": biased,
        "pre_norms": False,
        "post_norms": True,
        "qk_norm": True,
        "qk_norm_by_head": False,
    }


def _write_olmo2(config: ModelConfig) -> Raw:
    return write_common(config) | {"attention_bias": config.qkv_bias}


def _read_gemma(raw: Raw) -> Raw:
    """The first Gemma, and what the later ones have of it."""
    if raw.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is true; only causal models are supported")
    if raw.get("hidden_act") == "gelu":  # means the tanh approximation in this family
        raw = raw | {"hidden_act": "gelu_pytorch_tanh"}
    biased = raw["attention_bias"]
    return read_common(raw) | {
        "qkv_bias": biased,
        "out_bias": biased,
        "embedding_scale": math.sqrt(raw["hidden_size"]),
        "norm_unit_offset": True,
    }


def _write_gemma(config: ModelConfig) -> Raw:
    return write_common(config) | {"attention_bias": config.qkv_bias}


def _read_gemma2(raw: Raw, *, local: bool = False) -> Raw:
    if raw.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is true; only causal models are supported")
    biased = raw["attention_bias"]
    return (
        read_common(raw, local=local)
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


def _write_gemma2(config: ModelConfig, *, local: bool = False) -> Raw:
    _whole_heads(config)
    raw = write_common(config, local=local) | layer_types(config)
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
    if cap := raw.get("attn_logit_softcapping"):
        # transformers has the field and computes without it.
        raise ValueError(f"attn_logit_softcapping={cap!r}: Gemma 3 has no cap on its scores, it must be null")
    return _read_gemma2(raw, local=True) | types | {"qk_norm": True}


def _write_gemma3(config: ModelConfig) -> Raw:
    return _write_gemma2(config, local=True)


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
    _whole_heads(config)
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
_GEMMA1 = _LLAMA | {
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 256,
    "max_position_embeddings": 8192,
}
_GEMMA = _GEMMA1 | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "num_key_value_heads": 4,
}
_PHI3 = _LLAMA | {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_QWEN3_MOE = {
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _LLAMA, _read_llama, _write_llama, family_tensors.LLAMA_TENSORS),
    "mistral": Family(
        "MistralForCausalLM", _MISTRAL, _read_mistral, _write_mistral, family_tensors.LLAMA_TENSORS
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        _MISTRAL
        | {"sliding_window": None, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2}
        | {"rope_theta": 1e6},
        _read_mixtral,
        _write_mixtral,
        family_tensors.MIXTRAL_TENSORS,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _QWEN | {"sliding_window": 4096},
        _read_qwen2,
        _write_qwen2,
        family_tensors.LLAMA_TENSORS,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _QWEN | {"sliding_window": 4096, "head_dim": 128},
        _read_qwen3,
        _write_qwen3,
        family_tensors.LLAMA_TENSORS,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _QWEN | _QWEN3_MOE,
        _read_qwen3_moe,
        _write_qwen3_moe,
        family_tensors.QWEN3_MOE_TENSORS,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _PHI3 | {"original_max_position_embeddings": 4096},
        _read_phi3,
        _write_phi3,
        family_tensors.PHI3_TENSORS,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _LLAMA | {"rms_norm_eps": 1e-5},
        _read_olmo2,
        _write_olmo2,
        family_tensors.OLMO2_TENSORS,
    ),
    "gemma": Family("GemmaForCausalLM", _GEMMA1, _read_gemma, _write_gemma, family_tensors.GEMMA1_TENSORS),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _read_gemma2,
        _write_gemma2,
        family_tensors.GEMMA_TENSORS,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA | {"max_position_embeddings": 131_072, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        _read_gemma3,
        _write_gemma3,
        family_tensors.GEMMA_TENSORS,
    ),
    "opt": Family(
        "OPTForCausalLM",
        {"max_position_embeddings": 2048, "activation_function": "relu", "tie_word_embeddings": True},
        _read_opt,
        _write_opt,
        family_tensors.OPT_TENSORS,
    ),
}
