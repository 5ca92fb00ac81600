"""Models from and to disk in the Hugging Face layout.

    model, config = hf.load("runs/demo/model")
    tokenizer = hf.load_tokenizer("runs/demo/model")
    hf.save(model, "elsewhere", tokenizer)

Our own models say `"model_type": "mixattn"` and keep every field of `ModelConfig` in config.json.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tokenizers

from mixattn.hf import store, tensors
from mixattn.model import Transformer
from mixattn.spec import ModelConfig

NATIVE = "mixattn"


def save(model: Transformer, directory: str | Path, tokenizer: tokenizers.Tokenizer | None = None) -> None:
    """Writes config.json, model.safetensors and, if given, tokenizer.json; the directory is whole or
    refused."""
    config = {"model_type": NATIVE, **dataclasses.asdict(model.config)}
    text = None if tokenizer is None else tokenizer.to_str(pretty=True)
    store.write(Path(directory), config, tensors.dump(model, tensors.native), text)


def load(
    directory: str | Path, *, dtype: str | None = None, shardings: tensors.Shardings | None = None
) -> tuple[Transformer, ModelConfig]:
    """Reads a model.

    Args:
      dtype: of the weights in memory; None = the config's.
      shardings: parameter path and shape -> where it lives; None = the default device.
    Raises:
      ValueError: not a checkpoint, an unknown architecture, or tensors that do not fit (named, with both
      shapes).
    """
    directory = Path(directory)
    raw = store.read_json(directory / store.CONFIG)
    if raw.get("model_type") != NATIVE:
        raise ValueError(f"{directory}: model_type is {raw.get('model_type')!r}; this build reads {NATIVE}")
    config = native_config(raw)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)
    return tensors.load(store.Tensors(directory), config, tensors.native, shardings=shardings), config


def native_config(raw: dict[str, Any]) -> ModelConfig:
    """Raises ValueError for a field this version does not know."""
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    fields: dict[str, Any] = {key: value for key, value in raw.items() if key != "model_type"}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.json has a field {unknown[0]!r} that ModelConfig does not have")
    fields["dense_layers"] = tuple(fields.get("dense_layers", ()))
    return ModelConfig(**fields)


def load_tokenizer(directory: str | Path) -> tokenizers.Tokenizer:
    """Raises ValueError where tokenizer.json is missing or unreadable."""
    path = Path(directory) / store.TOKENIZER
    store.read_json(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as why:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer: {why}") from why
