"""Writes GGUF files from Hugging Face directories: the inverse of `mixattn.hf.gguf_*`, written apart.

llama.cpp reads these files too (`tests/parity/gguf_oracle.py`): reader and writer cannot share a mistake.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

BLOCK = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
ARCHITECTURE = {"mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3"}


def write_gguf(
    source: Path, path: Path, *, kind: str = "F32", config: dict | None = None, extra: dict | None = None
) -> Path:
    """Writes `source` (float32 safetensors) as GGUF.

    Args:
      kind: type of the matrices; other tensors stay float32.
      config: fields that replace those of config.json.
      extra: further metadata; a list of texts, of numbers, or a number.
    """
    raw = json.loads((source / "config.json").read_text()) | (config or {})
    architecture = ARCHITECTURE.get(raw["model_type"], raw["model_type"])
    out = gguf.GGUFWriter(path, architecture)
    _metadata(out, raw, architecture)
    for key, value in (extra or {}).items():
        _add(out, key, value)
    for name, array in _tensors(source, raw, architecture):
        quantization = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        data = gguf.quants.quantize(array, quantization)
        out.add_tensor(name, data, raw_dtype=quantization)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def write_vocabulary(path: Path, metadata: dict) -> Path:
    """A file without weights, for tokenizers."""
    out = gguf.GGUFWriter(path, "llama")
    for add, value in ((out.add_block_count, 1), (out.add_context_length, 64), (out.add_embedding_length, 8)):
        add(value)
    out.add_head_count(1)
    out.add_feed_forward_length(8)
    out.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        _add(out, f"tokenizer.{key}", value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def _add(out: gguf.GGUFWriter, key: str, value) -> None:
    match value:
        case bool():
            out.add_bool(key, value)
        case int():
            out.add_uint32(key, value)
        case float():
            out.add_float32(key, value)
        case str():
            out.add_string(key, value)
        case list():
            out.add_array(key, value)


def _metadata(out: gguf.GGUFWriter, raw: dict, architecture: str) -> None:
    rope = raw.get("rope_parameters", {})
    full, local = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    out.add_block_count(raw["num_hidden_layers"])
    out.add_context_length(raw["max_position_embeddings"])
    out.add_embedding_length(raw["hidden_size"])
    out.add_feed_forward_length(raw["intermediate_size"])
    out.add_head_count(raw["num_attention_heads"])
    out.add_head_count_kv(raw["num_key_value_heads"])
    out.add_key_length(raw["head_dim"])
    out.add_value_length(raw["head_dim"])
    out.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    out.add_rope_freq_base(full["rope_theta"])
    out.add_rope_dimension_count(raw["head_dim"])
    out.add_vocab_size(raw["vocab_size"])
    if "tokenizer.ggml.model" not in raw:
        out.add_tokenizer_model("no_vocab")
    if raw["model_type"] == "mixtral":
        out.add_expert_count(raw["num_local_experts"])
        out.add_expert_used_count(raw["num_experts_per_tok"])
    if raw.get("sliding_window"):
        out.add_sliding_window(raw["sliding_window"])
    if full.get("rope_type") == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(full["factor"])
    if local.get("rope_theta"):
        out.add_float32(f"{architecture}.rope.freq_base_swa", local["rope_theta"])
    if raw.get("sliding_window_pattern"):
        out.add_uint32(f"{architecture}.attention.sliding_window_pattern", raw["sliding_window_pattern"])
    if architecture == "gemma2":
        out.add_attn_logit_softcapping(raw["attn_logit_softcapping"])
        out.add_final_logit_softcapping(raw["final_logit_softcapping"])
    if (scalar := raw.get("query_pre_attn_scalar")) and scalar != raw["head_dim"]:
        out.add_attention_scale(scalar**-0.5)


def _tensors(source: Path, raw: dict, architecture: str):
    names = BLOCK | (GEMMA if architecture.startswith("gemma") else {})
    heads = {"attn_q": raw["num_attention_heads"], "attn_k": raw["num_key_value_heads"]}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, array in load_file(source / "model.safetensors").items():
        stem, kind = name.rsplit(".", 1)
        if stem in TOP:
            yield f"{TOP[stem]}.{kind}", array + (architecture.startswith("gemma") and "norm" in stem)
            continue
        _, _, layer, part = stem.split(".", 3)
        if ".experts." in part:
            expert = part.rsplit(".", 2)
            stacks.setdefault(f"blk.{layer}.{EXPERTS[expert[2]]}.{kind}", []).append((int(expert[1]), array))
            continue
        ours = names[part]
        if ours in heads and architecture == "llama":
            pairs = array.reshape(heads[ours], 2, -1, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        if "norm" in ours and architecture.startswith("gemma"):
            array = array + np.float32(1)
        yield f"blk.{layer}.{ours}.{kind}", np.ascontiguousarray(array)
    for name, rows in stacks.items():
        yield name, np.stack([array for _, array in sorted(rows, key=lambda row: row[0])])
    rope = raw.get("rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(raw["head_dim"], rope)


def llama3_factors(head_dim: int, rope: dict) -> np.ndarray:
    """What each rotated pair's frequency is divided by."""
    low, high = (
        rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"] for end in ("low", "high")
    )
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / head_dim)
        smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wavelength < high else rope["factor"] if wavelength > low else between)
    return np.array(factors, np.float32)
