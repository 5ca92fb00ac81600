"""Models that we export: each family with each option that a config has, and the native layout.

A family either refuses an option or, in `make parity`, transformers computes our logits with it.
"""

import dataclasses
from typing import Any

from mixattn.hf.families import FAMILIES
from mixattn.hf.translate import effective_fields, read_config, write_config
from mixattn.spec import ModelConfig

SMALL = {
    "vocab_size": 300,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
}
EXTRA: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [1],
    },
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 9},
    "gemma3_text": {"sliding_window": 5, "sliding_window_pattern": 3},
    "mistral": {"sliding_window": None},
    "opt": {"ffn_dim": 40},
}
LONG = {"rope_scaling": "longrope", "rope_factor": 4.0, "rope_original": 16}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rope_fraction": {"rope_fraction": 0.34},  # 2 of 6 entries
    "rope_theta": {"rope_theta": 5e5},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "llama3": {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original": 16},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 16},
    "yarn_set": {
        "rope_scaling": "yarn",
        "rope_factor": 4.0,
        "rope_original": 16,
        "rope_fast": 4.0,
        "rope_slow": 0.5,
        "rope_attention": 1.3,
    },
    "yarn_smooth": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 32, "rope_truncate": False},
    "longrope": LONG | {"rope_short": (1.0, 1.5, 2.0), "rope_long": (2.0, 4.0, 8.0)},
    "longrope_short": LONG
    | {"rope_original": 32, "rope_short": (1.0, 1.5, 2.0), "rope_long": (2.0, 4.0, 8.0)},
    "longrope_set": LONG
    | {"rope_short": (1.0, 1.5, 2.0), "rope_long": (2.0, 4.0, 8.0), "rope_attention": 1.2},
    "longrope_partial": LONG | {"rope_fraction": 0.67, "rope_short": (1.0, 1.5), "rope_long": (2.0, 4.0)},
    "dynamic": {"rope_scaling": "dynamic", "rope_factor": 3.0, "max_positions": 12},
    "local_theta": {"rope_theta_local": 500.0, "kv_wiring": "0s_1_2s", "window": 5},
    "softcap_attention": {"attention_softcap": 2.0},
    "softcap_logits": {"logit_softcap": 3.0},
    "tied": {"tied": True},
    "untied": {"tied": False},
    "sliding": {"kv_wiring": "0s_1s_2s", "window": 5},
    "mixed_windows": {"kv_wiring": "0s_1_2s", "window": 4},
    "full": {"kv_wiring": "0_1_2"},
    "shared": {"kv_wiring": "0_0_0"},
    "biases_qkv": {"qkv_bias": True},
    "biases_attention": {"qkv_bias": True, "out_bias": True},
    "biases_ffn": {"ffn_bias": True},
    "biases_all": {"qkv_bias": True, "out_bias": True, "ffn_bias": True},
    "biases_none": {"qkv_bias": False, "out_bias": False, "ffn_bias": False},
    "qk_norm": {"qk_norm": True},
    "no_qk_norm": {"qk_norm": False},
    "qk_norm_whole": {"qk_norm": True, "qk_norm_by_head": False},
    "gelu": {"activation": "gelu"},
    "gelu_exact": {"activation": "gelu_exact"},
    "relu2": {"activation": "relu2"},
    "not_gated": {"gated": False},
    "scale": {"attention_scale": 0.25},
    "scale_odd": {"attention_scale": 0.3},
    "embedding_scale": {"embedding_scale": 2.0},
    "unit_offset": {"norm_unit_offset": True},
    "post_norms": {"post_norms": True},
    "eps": {"norm_eps": 1e-3},
    "layer_norm": {"norm": "layer"},
    "kv_heads_all": {"n_kv_heads": 4},
    "kv_heads_one": {"n_kv_heads": 1},
    "head_wide": {"head_dim": 10},
    "width_odd": {"d_model": 26},
    "deep": {"n_layers": 5},
    "learned": {"positions": "learned", "position_offset": 2},
    "raw_gates": {"router_order": "softmax_topk_raw"},
    "dense_first": {"dense_layers": (0,), "d_ff_dense": 32},
}
# What only the native layout can say.
NATIVE: dict[str, ModelConfig] = {
    name: ModelConfig(n_layers=6, d_model=24, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=40, vocab_size=300)
    if not fields
    else ModelConfig(
        **{"n_layers": 6, "d_model": 24, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
        | {"d_ff": 40, "vocab_size": 300, "max_positions": 64}
        | fields
    )
    for name, fields in {
        "native_plain": {},
        "native_offset": {"kv_wiring": "0s_0s_2_3s_3s_2", "window": 5},
        "native_pairs": {"kv_wiring": "0_1s_1s_0_4s_4s", "window": 3, "tied": True, "qk_norm": True},
        "native_sliding": {"kv_wiring": "0s_0s_0s_3s_3s_3s", "window": 4, "rope_theta_local": 500.0},
        "native_experts": {
            "kv_wiring": "0s_0s_2_2_4s_4s",
            "window": 6,
            "n_experts": 4,
            "experts_per_token": 2,
            "dense_layers": (0,),
            "d_ff_dense": 32,
        },
        "native_gemma": {
            "kv_wiring": "0s_1_0s_1_0s_1",
            "window": 5,
            "norm_unit_offset": True,
            "post_norms": True,
            "attention_softcap": 5.0,
            "logit_softcap": 3.0,
            "embedding_scale": 4.9,
            "activation": "gelu",
            "tied": True,
        },
        "native_learned": {
            "positions": "learned",
            "position_offset": 2,
            "norm": "layer",
            "gated": False,
            "activation": "relu",
            "qkv_bias": True,
            "out_bias": True,
            "ffn_bias": True,
        },
        "native_yarn": {"kv_wiring": "0s_0s_2_3s_3s_2", "window": 5} | OPTIONS["yarn_set"],
        "native_longrope": OPTIONS["longrope"] | {"kv_wiring": "0_0_0_3_3_3"},
        "native_dynamic": OPTIONS["dynamic"] | {"max_positions": 12},
        "native_llama3": OPTIONS["llama3"] | {"rope_fraction": 0.67},
        "native_olmo": {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_by_head": False},
        "native_raw_gates": {"n_experts": 3, "experts_per_token": 2, "router_order": "softmax_topk_raw"},
        "native_no_positions": {"positions": "none", "activation": "relu2"},
    }.items()
}


def base(family: str) -> ModelConfig:
    """A small model of the family."""
    return read_config(family, SMALL | EXTRA.get(family, {}))


def expressed() -> dict[str, tuple[str, ModelConfig]]:
    """Family and config of every combination that the family can express, by name; each function once."""
    found = {}
    for family in FAMILIES:
        seen: list[dict[str, Any]] = []
        for option, fields in OPTIONS.items():
            if (family, option) == ("opt", "dynamic"):
                continue  # fewer learned positions than the tokens that are compared
            try:
                config = dataclasses.replace(base(family), **_deeper(family, fields))
                write_config(family, config)
            except ValueError:
                continue
            if (effect := effective_fields(config)) not in seen:
                seen.append(effect)
                found[f"{family}-{option}"] = family, config
    return found


def _deeper(family: str, fields: dict[str, Any]) -> dict[str, Any]:
    """`n_layers` needs a wiring of that depth."""
    if "n_layers" not in fields:
        return fields
    wiring = base(family).wiring.split("_")
    return fields | {
        "kv_wiring": "_".join(f"{i}{'s' * wiring[i % 3].endswith('s')}" for i in range(fields["n_layers"]))
    }
