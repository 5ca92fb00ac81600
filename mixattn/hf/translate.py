"""Between a family's files and our model: its config.json either way, and where each parameter lies.

The writer's word is checked by reading it back: a model that the family cannot express is refused by naming
the field in which the two differ.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from mixattn.hf.config_fields import Raw, slides
from mixattn.hf.families import FAMILIES, Family
from mixattn.hf.tensors import Path, TensorPlace
from mixattn.spec import ModelConfig


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
    if not any(slides(config)):
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


def places(model_type: str, config: ModelConfig) -> Callable[[Path], TensorPlace]:
    """Where each of our parameters lies in a checkpoint of this family."""
    table = family(model_type).tensors

    def place(path: Path) -> TensorPlace:
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
        layer, part = (int(block[1]), block[2]) if block else (0, path)
        if part not in table:
            raise ValueError(f"{model_type} has no tensor for our parameter {path}")
        if "{e}" in table[part]:
            rows = tuple(table[part].format(i=layer, e=e) for e in range(config.n_experts))
            return TensorPlace(rows, transpose=True, stacked=True)
        flipped = part.endswith(".kernel") or part == "ffn.router"
        return TensorPlace((table[part].format(i=layer),), transpose=flipped)

    return place


def dormant_tensor(name: str) -> bool:
    """Whether a tensor may be in a checkpoint without our model having a parameter for it."""
    return name.endswith(("rotary_emb.inv_freq", "self_attn.masked_bias"))
