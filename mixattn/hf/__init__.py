"""Loads and saves models in the Hugging Face layout.

    model, config = hf.load("runs/demo/model")
    tokenizer = hf.load_tokenizer("runs/demo/model")
    hf.save(model, "elsewhere", tokenizer)

The native layout has `"model_type": "mixattn"` and stores every field of `ModelConfig` in config.json.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tokenizers

from mixattn.hf import checkpoint_dir, tensors, translate
from mixattn.model import Transformer
from mixattn.spec import ModelConfig

__all__ = ["NATIVE", "load", "load_tokenizer", "native_config", "save", "stop_ids"]

NATIVE = "mixattn"


def save(
    model: Transformer,
    directory: str | Path,
    tokenizer: tokenizers.Tokenizer | None = None,
    *,
    architecture: str = NATIVE,
    extra: dict[str, Any] | None = None,
) -> None:
    """Writes config.json, the weights and, if given, tokenizer.json.

    `load` refuses a directory whose save was interrupted.

    Args:
      architecture: "mixattn", or a model type of `mixattn.hf.families` that can express the model.
      extra: further generation settings, for example token ids, for generation_config.json.

    Raises:
      ValueError: the architecture cannot express the model; the message names the field.
    """
    config, tokenizer_json = model.config, None if tokenizer is None else tokenizer.to_str(pretty=True)
    if architecture == NATIVE:
        raw = {"model_type": NATIVE, **dataclasses.asdict(config)}
        places: tensors.Places = tensors.native_places
    else:
        raw = translate.write_config(architecture, config)
        places = translate.family_places(architecture, config)
    checkpoint_dir.write(Path(directory), raw, tensors.dump(model, places), tokenizer_json, generation=extra)


def load(
    directory: str | Path, *, dtype: str | None = None, shardings: tensors.Shardings | None = None
) -> tuple[Transformer, ModelConfig]:
    """Reads a model of any known architecture.

    Args:
      dtype: dtype of the weights in memory; None = the config's.
      shardings: parameter path and shape -> its sharding; None = the default device.

    Raises:
      ValueError: not a checkpoint, an unknown architecture, or a tensor that does not fit (the message names
        it and both shapes).
    """
    directory = Path(directory)
    raw = checkpoint_dir.read_json(directory / checkpoint_dir.CONFIG)
    model_type = raw.get("model_type", "")
    places: tensors.Places = tensors.native_places
    if model_type == NATIVE:
        config = native_config(raw)
    else:
        config = translate.read_config(model_type, raw)
        places = translate.family_places(model_type, config)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)

    def ignored(name: str) -> bool:
        return translate.is_derived_tensor(name) or (config.tied and name == "lm_head.weight")

    return tensors.load(checkpoint_dir.Tensors(directory), config, places, ignored, shardings), config


def stop_ids(directory: str | Path) -> list[int]:
    """The end-of-text token ids that a checkpoint declares, possibly none.

    generation_config.json takes precedence over config.json.
    """
    for name in (checkpoint_dir.GENERATION, checkpoint_dir.CONFIG):
        if (Path(directory) / name).exists():
            ids = checkpoint_dir.read_json(Path(directory) / name).get("eos_token_id")
            if ids is not None:
                return [ids] if isinstance(ids, int) else list(ids)
    return []


def native_config(raw: dict[str, Any]) -> ModelConfig:
    """The `ModelConfig` stored in a native config.json.

    Raises:
      ValueError: a field that `ModelConfig` does not have.
    """
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    fields: dict[str, Any] = {key: value for key, value in raw.items() if key != "model_type"}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.json has a field {unknown[0]!r} that ModelConfig does not have")
    fields["dense_layers"] = tuple(fields.get("dense_layers", ()))
    return ModelConfig(**fields)


def load_tokenizer(directory: str | Path) -> tokenizers.Tokenizer:
    """The checkpoint's tokenizer.

    Raises:
      ValueError: tokenizer.json is missing or unreadable.
    """
    path = Path(directory) / checkpoint_dir.TOKENIZER
    checkpoint_dir.read_json(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as why:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer: {why}") from why
