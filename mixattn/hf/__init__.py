"""Loads and saves models in the Hugging Face layout, and loads GGUF files.

    model, config = hf.load("runs/demo/model")  # or a GGUF file, here and below
    tokenizer = hf.load_tokenizer("runs/demo/model")
    hf.save(model, "elsewhere", tokenizer)

The native layout has `"model_type": "mixattn"` and stores every field of `ModelConfig` in config.json.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tokenizers

from mixattn.hf import checkpoint_dir, tensors, translate
from mixattn.hf.sources import CheckpointSource, open_source
from mixattn.model import Transformer
from mixattn.spec import ModelConfig

__all__ = [
    "NATIVE",
    "generation_settings",
    "has_tokenizer",
    "load",
    "load_tokenizer",
    "native_config",
    "read_config",
    "save",
    "stop_ids",
    "tokenizer_settings",
]

NATIVE = "mixattn"


def save(
    model: Transformer,
    directory: str | Path,
    tokenizer: tokenizers.Tokenizer | None = None,
    *,
    architecture: str = NATIVE,
    extra: dict[str, Any] | None = None,
    tokenizer_config: dict[str, Any] | None = None,
) -> None:
    """Writes config.json, the weights and, if given, tokenizer.json.

    `load` refuses a directory whose save was interrupted.

    Args:
      architecture: "mixattn", or a model type of `mixattn.hf.families` that can express the model.
      extra: further generation settings, for example token ids, for generation_config.json.
      tokenizer_config: contents of tokenizer_config.json, for example the chat template.

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
    checkpoint_dir.write(
        Path(directory),
        raw,
        tensors.dump(model, places),
        tokenizer_json,
        generation=extra,
        tokenizer_config=tokenizer_config,
    )


def load(
    path: str | Path, *, dtype: str | None = None, shardings: tensors.Shardings | None = None
) -> tuple[Transformer, ModelConfig]:
    """Reads a model of any known architecture.

    Args:
      path: a directory, or a GGUF file (any of its quantisation types).
      dtype: dtype of the weights in memory; None = the config's.
      shardings: parameter path and shape -> its sharding; None = the default device.

    Raises:
      ValueError: not a checkpoint, an unknown architecture, or a tensor that does not fit (the message names
        it and both shapes).
    """
    source = open_source(path)
    raw = source.config()
    config = _config(raw)
    places: tensors.Places = tensors.native_places
    if (model_type := raw.get("model_type", "")) != NATIVE:
        places = translate.family_places(model_type, config)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)

    def ignored(name: str) -> bool:
        return translate.is_derived_tensor(name) or (config.tied and name == "lm_head.weight")

    return tensors.load(source.tensors(), config, places, ignored, shardings), config


def read_config(path: str | Path) -> ModelConfig:
    """The config of the model at `path`, without its weights.

    Raises:
      ValueError: as `load`.
    """
    return _config(open_source(path).config())


def _config(raw: dict[str, Any]) -> ModelConfig:
    model_type = raw.get("model_type", "")
    return native_config(raw) if model_type == NATIVE else translate.read_config(model_type, raw)


def stop_ids(path: str | Path) -> list[int]:
    """The end-of-text token ids that a checkpoint declares, possibly none.

    generation_config.json takes precedence over config.json.
    """
    ids = generation_settings(path).get("eos_token_id")
    if ids is None and not Path(path).is_file():
        ids = _optional_config(open_source(path)).get("eos_token_id")
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _optional_config(source: CheckpointSource) -> dict[str, Any]:
    try:
        return source.config()
    except ValueError:
        return {}


def generation_settings(path: str | Path) -> dict[str, Any]:
    """What generation_config.json says: token ids and sampling defaults, possibly nothing."""
    return open_source(path).generation()


def tokenizer_settings(path: str | Path) -> dict[str, Any]:
    """What tokenizer_config.json says, and the chat template wherever it lies, possibly nothing."""
    return open_source(path).tokenizer_settings()


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


def has_tokenizer(path: str | Path) -> bool:
    """Whether the checkpoint comes with a tokenizer."""
    return open_source(path).has_tokenizer()


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """The checkpoint's tokenizer.

    Raises:
      ValueError: it is missing, unreadable or of an unknown kind.
    """
    return open_source(path).tokenizer()
