"""Published architectures as data: how each one's config.json reads as a `ModelConfig`, and what it calls
its tensors.

A family is a dict of defaults (config.json leaves them out), a reader, a writer, and a table of names. The
writer's word is checked by reading it back: a model that the family cannot express is refused by naming the
field in which the two differ. Sources: the configuration and modelling files of Hugging Face transformers
5.23.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mixattn.hf import names
from mixattn.hf.rope import read_rope, write_rope
from mixattn.hf.tensors import Path, Place
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


def _read_common(raw: Raw) -> Raw:
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


def _write_common(config: ModelConfig) -> Raw:
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


def _windows(raw: Raw, slides: Callable[[int], bool]) -> Raw:
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


def _slides(config: ModelConfig) -> list[bool]:
    return [layer.window is not None for layer in config.layers]


def _layer_types(config: ModelConfig) -> Raw:
    kinds = ["sliding_attention" if slides else "full_attention" for slides in _slides(config)]
    return {"layer_types": kinds, "sliding_window": config.window}


def _read_llama(raw: Raw) -> Raw:
    biased = raw["attention_bias"]
    return _read_common(raw) | {"qkv_bias": biased, "out_bias": biased, "ffn_bias": raw["mlp_bias"]}


def _write_llama(config: ModelConfig) -> Raw:
    return _write_common(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}


def _read_mistral(raw: Raw) -> Raw:
    return _read_common(raw) | _windows(raw, lambda i: True)


def _write_mistral(config: ModelConfig) -> Raw:
    return _write_common(config) | {"sliding_window": config.window if all(_slides(config)) else None}


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
    return _read_common(raw) | _windows(sliding, lambda i: i >= raw["max_window_layers"]) | {"qkv_bias": True}


def _write_qwen2(config: ModelConfig) -> Raw:
    return _write_common(config) | _layer_types(config) | {"use_sliding_window": any(_slides(config))}


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
        _read_common(raw)
        | _windows(raw, lambda i: i % 2 == 0)
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
    raw = _write_common(config) | _layer_types(config)
    return raw | {
        "hidden_activation": raw.pop("hidden_act"),
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round((config.attention_scale or config.head_dim**-0.5) ** -2),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
    }


def _read_gemma3(raw: Raw) -> Raw:
    period = raw.get("sliding_window_pattern") or 6
    types = _windows(raw, lambda i: (i + 1) % period != 0)
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


def family(model_type: str) -> Family:
    """Raises ValueError for a model type that is not in the table."""
    if model_type not in FAMILIES:
        raise ValueError(f"model_type is {model_type!r}; known are mixattn, {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def read_config(model_type: str, raw: Raw) -> ModelConfig:
    """The `ModelConfig` of a family's config.json.

    Raises:
      ValueError: an unknown family, a missing field, or a feature the model does not have.
    """
    kin = family(model_type)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    try:
        return ModelConfig(**kin.read(kin.defaults | raw), dtype=dtype)
    except KeyError as why:
        raise ValueError(f"config.json of model_type {model_type!r} has no field {why}") from why


def write_config(model_type: str, config: ModelConfig) -> Raw:
    """The config.json that makes this family compute the same function.

    Raises:
      ValueError: the family cannot express some field of `config`; says which.
    """
    kin = family(model_type)
    raw = {
        "architectures": [kin.architecture],
        "model_type": model_type,
        "dtype": config.dtype,
        **kin.write(config),
    }
    ours, theirs = _meaning(config), _meaning(read_config(model_type, raw))
    for field, value in ours.items():
        same = math.isclose(value, theirs[field]) if isinstance(value, float) else value == theirs[field]
        if not same:
            raise ValueError(f"{model_type} cannot say {field}={value!r}, only {theirs[field]!r}")
    return raw


def _meaning(config: ModelConfig) -> Raw:
    """The fields that change what the model computes, aliases resolved and dormant ones dropped."""
    fields = dataclasses.asdict(config) | {
        "kv_wiring": config.wiring,
        "attention_scale": config.attention_scale or config.head_dim**-0.5,
        "rope_theta_local": config.rope_theta_local or config.rope_theta,
        "router_order": config.router_order.replace("topk_softmax", "softmax_topk"),
    }
    dormant = {"capacity_factor"}  # a training matter
    if not any(_slides(config)):
        dormant |= {"window", "rope_theta_local"}
    if config.positions != "rope":
        dormant |= {"rope_theta", "rope_theta_local", "rope_fraction"}
    if config.positions != "learned":
        dormant |= {"max_positions", "position_offset"}
    if config.rope_scaling == "none":
        dormant |= {"rope_factor"}
    if config.rope_scaling != "llama3":
        dormant |= {"rope_low", "rope_high", "rope_original"}
    if not config.n_experts:
        dormant |= {"experts_per_token", "d_ff_dense", "dense_layers", "router_order"}
    return {key: value for key, value in fields.items() if key not in dormant}


def places(model_type: str, config: ModelConfig) -> Callable[[Path], Place]:
    """Where each of our parameters lies in a checkpoint of this family."""
    table = family(model_type).tensors

    def place(path: Path) -> Place:
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
        layer, part = (int(block[1]), block[2]) if block else (0, path)
        if part not in table:
            raise ValueError(f"{model_type} has no tensor for our parameter {path}")
        if "{e}" in table[part]:
            rows = tuple(table[part].format(i=layer, e=e) for e in range(config.n_experts))
            return Place(rows, transpose=True, stacked=True)
        flipped = part.endswith(".kernel") or part == "ffn.router"
        return Place((table[part].format(i=layer),), transpose=flipped)

    return place


def dormant_tensor(name: str) -> bool:
    """Whether a tensor may be in a checkpoint without our model having a parameter for it."""
    return name.endswith(("rotary_emb.inv_freq", "self_attn.masked_bias"))
