"""The transformers side of parity: writes tiny random models and reads ours. Imports torch, not our packages.

    python torch_side.py build DIR [--fixtures]   writes DIR/CASE/{config.json, model.safetensors, want.npz}
    python torch_side.py check DIR                loads DIR/CASE/back, written by our side; compares logits

`want.npz` holds tokens and the float32 logits of transformers.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

TOLERANCE = 1e-4
SMALL = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
OPT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "word_embed_proj_dim": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
# The committed fixtures: one case per architecture. `MORE` varies groups, head sizes, ties, windows, biases.
FIXTURES = {
    "llama": ("llama", {**SMALL, "rope_parameters": LLAMA3}),
    "mistral": ("mistral", {**SMALL, "num_key_value_heads": 4, "sliding_window": 5}),
    "mixtral": (
        "mixtral",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2},
    ),
    "qwen2": ("qwen2", {**SMALL, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**SMALL, "head_dim": 10}),
    "gemma2": ("gemma2", {**SMALL, "sliding_window": 4, "query_pre_attn_scalar": 9}),
    "gemma3_text": (
        "gemma3_text",
        {**SMALL, "sliding_window": 4, "sliding_window_pattern": 3, "rope_parameters": GEMMA3_ROPE},
    ),
    "opt": ("opt", OPT),
    "gemma": ("gemma", {**SMALL, "num_key_value_heads": 2}),
    "phi3": (
        "phi3",
        {
            **{name: value for name, value in SMALL.items() if name != "head_dim"},
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.67,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 4.0],
            },
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **SMALL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "mlp_only_layers": [1],
        },
    ),
    "olmo2": (
        "olmo2",
        {
            **SMALL,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
}
MORE = {
    "llama_plain": ("llama", {**SMALL, "num_key_value_heads": 4, "head_dim": 14}),
    "llama_tied_biased": (
        "llama",
        {
            **SMALL,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 2,
        },
    ),
    "llama_linear": (
        "llama",
        {**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "mistral_wide": ("mistral", {**SMALL, "sliding_window": 60}),
    "mistral_full": ("mistral", {**SMALL, "sliding_window": None, "tie_word_embeddings": True}),
    "mixtral_top1": (
        "mixtral",
        {**SMALL, "num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 6},
    ),
    "mixtral_all": ("mixtral", {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 2}),
    "qwen2_sliding": (
        "qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "head_dim": None},
    ),
    "qwen3_biased_tied": ("qwen3", {**SMALL, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma2_wide": ("gemma2", {**SMALL, "sliding_window": 50, "num_key_value_heads": 4, "head_dim": 8}),
    "gemma2_uncapped": (
        "gemma2",
        {**SMALL, "sliding_window": 5, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3_seven_layers": (
        "gemma3_text",
        {**SMALL, "num_hidden_layers": 7, "sliding_window": 3, "query_pre_attn_scalar": 6},
    ),
    "gemma_old_name": ("gemma", {**SMALL, "hidden_act": "gelu", "num_key_value_heads": 4, "head_dim": 8}),
    "llama_yarn_mscale": (
        "llama",
        {
            **SMALL,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.5,
                "mscale_all_dim": 0.7,
                "beta_fast": 16,
                "truncate": False,
            },
        },
    ),
    "llama_dynamic": (
        "llama",
        {
            **SMALL,
            "max_position_embeddings": 12,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
        },
    ),
    "mistral_longrope": (
        "mistral",
        {
            **SMALL,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "original_max_position_embeddings": 32,
                "short_factor": [1.0, 1.5, 2.0],
                "long_factor": [2.0, 4.0, 8.0],
            },
        },
    ),
    "phi3_sliding": (
        "phi3",
        {
            **{n: v for n, v in SMALL.items() if n != "head_dim"},
            "num_key_value_heads": 4,
            "sliding_window": 5,
        },
    ),
    "qwen3_moe_renormalized": (
        "qwen3_moe",
        {
            **SMALL,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "olmo2_biased_tied": ("olmo2", {**SMALL, "attention_bias": True, "tie_word_embeddings": True}),
    "opt_untied": ("opt", {**OPT, "tie_word_embeddings": False, "activation_function": "gelu"}),
}


def model_of(model_type: str, fields: dict, seed: int):
    """A random model whose norms, biases and gates differ from their starting values."""
    torch.manual_seed(seed)
    fields = {key: value for key, value in fields.items() if not (key == "head_dim" and value is None)}
    config = AutoConfig.for_model(model_type, **fields)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() > 1 else 0.2
            parameter.add_(scale * torch.randn_like(parameter))
    return model


@torch.no_grad()
def logits_of(model, tokens: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(tokens), use_cache=False).logits.float().numpy()


def build(directory: Path, cases: dict) -> None:
    for seed, (name, (model_type, fields)) in enumerate(cases.items()):
        model = model_of(model_type, fields, seed)
        model.save_pretrained(directory / name)
        (directory / name / "generation_config.json").unlink(missing_ok=True)
        tokens = np.random.default_rng(seed).integers(0, fields["vocab_size"], (2, 19))
        np.savez(
            directory / name / "want.npz", tokens=tokens.astype(np.int32), logits=logits_of(model, tokens)
        )
        print(f"built {name}")


def check(directory: Path, cases: dict) -> None:
    worst = {}
    for name in cases:
        want = np.load(directory / name / "want.npz")
        model = AutoModelForCausalLM.from_pretrained(directory / name / "back", attn_implementation="eager")
        worst[name] = np.abs(
            logits_of(model.float().eval(), want["tokens"].astype(np.int64)) - want["logits"]
        ).max()
        print(f"{name:22} back in transformers: largest logit difference {worst[name]:.2e}")
    if max(worst.values()) > TOLERANCE:
        sys.exit(f"{max(worst, key=worst.get)} differs by {max(worst.values()):.2e}, more than {TOLERANCE}")


if __name__ == "__main__":
    command, where = sys.argv[1], Path(sys.argv[2])
    chosen = FIXTURES if "--fixtures" in sys.argv else FIXTURES | MORE
    {"build": build, "check": check}[command](where, chosen)
