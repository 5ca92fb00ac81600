"""The native layout: `"model_type": "mixattn"`, and under `"mixattn"` every field of `ModelConfig`.

The fields beside it are what other programs ask a config.json for; where they contradict ours, the file is
refused. `auto_map` names `modeling_mixattn.py`, which lies in the folder too: with it transformers opens the
model (`trust_remote_code=True`). Files of older versions have our fields without the level between.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixattn.spec import ModelConfig

NATIVE = "mixattn"
CODE = "modeling_mixattn.py"
_CODE_FILE = Path(__file__).parent / "export" / CODE
# What transformers calls our fields, for programs that only look.
_SHARED = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_positions",
    "tie_word_embeddings": "tied",
    "dtype": "dtype",
    "wiring": "wiring",
}
_OTHERS = {"model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "rope_theta"}
_OTHERS |= {"bos_token_id", "eos_token_id", "pad_token_id", NATIVE, *_SHARED}


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of config.json, without the ids of special tokens."""
    module = CODE.removesuffix(".py")
    return {
        "model_type": NATIVE,
        "architectures": ["MixAttentionForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.MixAttentionConfig",
            "AutoModelForCausalLM": f"{module}.MixAttentionForCausalLM",
        },
        **{theirs: getattr(config, ours) for theirs, ours in _SHARED.items()},
        NATIVE: dataclasses.asdict(config),
    }


def modelling_code() -> str:
    """The torch code that transformers runs."""
    return _CODE_FILE.read_text(encoding="utf-8")


def read_config(raw: dict[str, Any]) -> ModelConfig:
    """The `ModelConfig` stored in a native config.json of any version.

    Raises:
      ValueError: a field that `ModelConfig` does not have or refuses, or two that contradict each other.
    """
    nested = raw.get(NATIVE)
    if nested is None:
        return _model_config({key: value for key, value in raw.items() if key != "model_type"})
    if not isinstance(nested, dict):
        raise ValueError(f"{NATIVE} is {nested!r}; it must be an object of model fields")
    if unknown := sorted(raw.keys() - _OTHERS):
        raise ValueError(f"config.json has a field {unknown[0]!r} that the native layout does not have")
    config = _model_config(nested)
    for theirs, ours in _SHARED.items():
        if theirs in raw and raw[theirs] != getattr(config, ours):
            raise ValueError(f"{theirs} is {raw[theirs]!r}, but {NATIVE}.{ours} is {getattr(config, ours)!r}")
    return config


def has_codes(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a quantised model of ours."""
    nested = raw.get(NATIVE)
    return raw.get("model_type") == NATIVE and isinstance(nested, Mapping) and bool(nested.get("quantize"))


def _model_config(fields: dict[str, Any]) -> ModelConfig:
    known = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"config.json has a field {unknown[0]!r} that ModelConfig does not have")
    tuples = {name for name, kind in known.items() if kind in (tuple[int, ...], tuple[float, ...])}
    values: dict[str, Any] = {
        name: tuple(value) if name in tuples and isinstance(value, list) else value
        for name, value in fields.items()
    }
    return ModelConfig(**values)
