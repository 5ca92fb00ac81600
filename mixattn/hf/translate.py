"""Translation between a family's files and our model: its config.json in both directions, and where each
parameter is stored.

A written config.json is verified by reading it back. A model that the family cannot express is refused with
the name of the first field that differs.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from mixattn.hf.config_fields import slides
from mixattn.hf.families import FAMILIES, Family
from mixattn.hf.family_tensors import FUSED
from mixattn.hf.quantised import refuse_quantised
from mixattn.hf.raw_fields import Raw, check_types
from mixattn.hf.tensors import ParamPath, TensorPlace, TensorSlice
from mixattn.spec import ModelConfig

# Families that are asked for and that the model's parts cannot express.
NOT_SERVED = {
    "gpt2": "its projections are fused and stored transposed, and biases sit everywhere",
    "gpt_neox": "its attention and feed-forward run in parallel",
    "phi": "its attention and feed-forward run in parallel",
    "falcon": "its attention and feed-forward run in parallel",
    "cohere": "its attention and feed-forward run in parallel",
    "qwen2_moe": "its shared expert has a gate of its own",
    "deepseek_v2": "its keys and values are compressed (MLA)",
    "deepseek_v3": "its keys and values are compressed (MLA)",
    "gpt_oss": "its attention has sinks and its experts have biases",
    "llama4": "it mixes chunked attention with layers without positions",
    "gemma3": "it reads images too; its text part alone is gemma3_text",
    "gemma3n": "it has embeddings by layer and alternating updates",
    "mamba": "it has no attention",
}


def family_of(model_type: str) -> Family:
    """The family of a config.json's `model_type`.

    Raises:
      ValueError: an unknown model type.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        why = f": {NOT_SERVED[model_type]}" if str(model_type) in NOT_SERVED else ""
        raise ValueError(f"model_type is {model_type!r}{why}; known are mixattn, {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def read_config(model_type: str, raw: Raw) -> ModelConfig:
    """The `ModelConfig` of a family's config.json.

    Raises:
      ValueError: an unknown family, a missing field, or a feature the model does not have.
    """
    family = family_of(model_type)
    refuse_quantised(raw)
    check_types(raw)
    dtype = (raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    try:
        return ModelConfig(**family.read(family.defaults | raw), dtype=dtype)
    except KeyError as why:
        raise ValueError(f"config.json of model_type {model_type!r} has no field {why}") from why


def write_config(model_type: str, config: ModelConfig) -> Raw:
    """The config.json with which this family computes the same function.

    Raises:
      ValueError: the family cannot express a field of `config`; the message names it.
    """
    family = family_of(model_type)
    raw = {"architectures": [family.architecture], "model_type": model_type, "dtype": config.dtype}
    try:
        raw |= family.write(config)
        theirs = effective_fields(read_config(model_type, raw))
    except ValueError as why:
        raise ValueError(f"{model_type} cannot express this model: {why}") from why
    ours = effective_fields(config)
    for field, value in ours.items():
        same = math.isclose(value, theirs[field]) if isinstance(value, float) else value == theirs[field]
        if not same:
            raise ValueError(f"{model_type} cannot express {field}={value!r}, only {theirs[field]!r}")
    return raw


def effective_fields(config: ModelConfig) -> Raw:
    """The fields that affect what the model computes: aliases are resolved, unused fields dropped."""
    fields = dataclasses.asdict(config) | {
        "kv_wiring": config.wiring,
        "attention_scale": config.attention_scale or config.head_dim**-0.5,
        "rope_theta_local": config.rope_theta_local or config.rope_theta,
        "router_order": config.router_order.replace("topk_softmax", "softmax_topk"),
    }
    # The first affects training only; the second how a model is run.
    unused = {"capacity_factor", "rope_length"}
    if not any(slides(config)):
        unused |= {"window", "rope_theta_local"}
    if not config.qk_norm:
        unused |= {"qk_norm_by_head"}
    unused |= _unused_positions(config)
    if not config.n_experts:
        unused |= {"experts_per_token", "d_ff_dense", "dense_layers", "router_order"}
    return {name: value for name, value in fields.items() if name not in unused}


_ROPE_FIELDS = {
    "none": (),
    "linear": ("rope_factor",),
    "dynamic": ("rope_factor", "max_positions"),
    "llama3": ("rope_factor", "rope_low", "rope_high", "rope_original"),
    "yarn": (*("rope_factor", "rope_original", "rope_fast", "rope_slow", "rope_truncate", "rope_attention"),),
    "longrope": ("rope_factor", "rope_original", "rope_attention", "rope_short", "rope_long"),
}


def _unused_positions(config: ModelConfig) -> set[str]:
    """Fields about positions that the config's kind of positions does not read."""
    used: set[str] = {"max_positions", "position_offset"} if config.positions == "learned" else set()
    if config.positions == "rope":
        used = {"rope_theta", "rope_theta_local", "rope_fraction", "rope_scaling"}
        used |= set(_ROPE_FIELDS[config.rope_scaling])
    every = {"max_positions", "position_offset", "rope_theta", "rope_theta_local", "rope_fraction"}
    return (every | {"rope_scaling"} | set().union(*_ROPE_FIELDS.values())) - used


def family_places(model_type: str, config: ModelConfig) -> Callable[[ParamPath], TensorPlace]:
    """Maps each of our parameters to its place in a checkpoint of this family."""
    tensor_names = family_of(model_type).tensors

    def place(path: ParamPath) -> TensorPlace:
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
        layer, part = (int(block[1]), block[2]) if block else (0, path)
        if part not in tensor_names:
            raise ValueError(f"{model_type} has no tensor for our parameter {path}")
        name = tensor_names[part]
        if "{e}" in name:
            rows = tuple(name.format(i=layer, e=e) for e in range(config.n_experts))
            return TensorPlace(rows, transpose=True, stacked=True)
        transpose = part.endswith(".kernel") or part == "ffn.router"
        return TensorPlace((name.format(i=layer),), transpose=transpose, slice=_slice(config, name, part))

    return place


def _slice(config: ModelConfig, name: str, part: str) -> TensorSlice | None:
    """The rows of a fused tensor that are this parameter's."""
    if name not in FUSED or part not in FUSED[name]:
        return None
    heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    rows = {"q": heads, "k": kv_heads, "v": kv_heads, "gate": config.d_ff, "up": config.d_ff}
    sizes = [rows[part.split(".")[1]] for part in FUSED[name]]
    at = FUSED[name].index(part)
    return TensorSlice(sum(sizes[:at]), sum(sizes[: at + 1]), sum(sizes))


def is_derived_tensor(name: str) -> bool:
    """Whether a checkpoint may hold this tensor although no parameter corresponds to it."""
    return name.endswith(("rotary_emb.inv_freq", "self_attn.masked_bias"))
