"""Translation between a family's files and our model: its config.json in both directions, and where each
parameter is stored.

A written config.json is verified by reading it back. A model that the family cannot express is refused with
the name of the first field that differs.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from mixattn.hf.config_fields import Raw, slides
from mixattn.hf.families import FAMILIES, Family
from mixattn.hf.tensors import ParamPath, TensorPlace
from mixattn.spec import ModelConfig


def family_of(model_type: str) -> Family:
    """The family of a config.json's `model_type`.

    Raises:
      ValueError: an unknown model type.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"model_type is {model_type!r}; known are mixattn, {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def read_config(model_type: str, raw: Raw) -> ModelConfig:
    """The `ModelConfig` of a family's config.json.

    Raises:
      ValueError: an unknown family, a missing field, or a feature the model does not have.
    """
    family = family_of(model_type)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
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
    raw = {
        "architectures": [family.architecture],
        "model_type": model_type,
        "dtype": config.dtype,
        **family.write(config),
    }
    ours, theirs = effective_fields(config), effective_fields(read_config(model_type, raw))
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
    unused = {"capacity_factor"}  # affects training only
    if not any(slides(config)):
        unused |= {"window", "rope_theta_local"}
    if config.positions != "rope":
        unused |= {"rope_theta", "rope_theta_local", "rope_fraction"}
    if config.positions != "learned":
        unused |= {"max_positions", "position_offset"}
    if config.rope_scaling == "none":
        unused |= {"rope_factor"}
    if config.rope_scaling != "llama3":
        unused |= {"rope_low", "rope_high", "rope_original"}
    if not config.n_experts:
        unused |= {"experts_per_token", "d_ff_dense", "dense_layers", "router_order"}
    return {name: value for name, value in fields.items() if name not in unused}


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
        return TensorPlace((name.format(i=layer),), transpose=transpose)

    return place


def is_derived_tensor(name: str) -> bool:
    """Whether a checkpoint may hold this tensor although no parameter corresponds to it."""
    return name.endswith(("rotary_emb.inv_freq", "self_attn.masked_bias"))
