"""Loads and saves models in the Hugging Face layout, and loads GGUF files.

    model, config = hf.load("runs/demo/model")  # or a GGUF file, here and below
    tokenizer = hf.load_tokenizer("runs/demo/model")
    hf.save(model, "elsewhere", companions=hf.companions("runs/demo/model"))

A folder is opened by `open_source`, which knows its config, weights, tokenizer, chat templates and generation
settings; `companions` carries all but the first two. The native layout is that of `mixattn.hf.native`.
"""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mixattn import quantize as quantized
from mixattn.hf import checkpoint_dir, native, tensors, tokenizer_file, translate
from mixattn.hf.companions import Companions, SpecialIds, id_fields, named_templates, read_settings
from mixattn.hf.native import NATIVE
from mixattn.hf.native import read_config as native_config
from mixattn.hf.sources import CheckpointSource, GGUFSource, open_source
from mixattn.hf.tokenizer_file import encode, read_tokenizer
from mixattn.model import Transformer
from mixattn.spec import ModelConfig

__all__ = [
    "NATIVE",
    "Companions",
    "SpecialIds",
    "chat_templates",
    "companions",
    "encode",
    "end_token",
    "generation_settings",
    "has_tokenizer",
    "load",
    "load_tokenizer",
    "native_config",
    "open_source",
    "read_config",
    "read_tokenizer",
    "save",
    "special_ids",
    "stop_ids",
    "tokenizer_settings",
]
_COMPARED_ROWS = 1024
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
    model: Transformer,
    directory: str | Path,
    tokenizer: tokenizers.Tokenizer | None = None,
    *,
    architecture: str = NATIVE,
    extra: dict[str, Any] | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    companions: Companions | None = None,
) -> None:
    """Writes config.json, the weights, and what lies beside them; `load` refuses an interrupted save.

    transformers opens the result: a family's by itself, the native layout by the code that lies with it.

    Args:
      architecture: "mixattn", or a model type of `mixattn.hf.families` that can express the model.
      companions: what to write beside the model; or, one by one,
      tokenizer: None leaves the files that are there, unless `companions` are given.
      extra: generation settings, for example token ids, for generation_config.json.
      tokenizer_config: contents of tokenizer_config.json, for example the chat template.

    Raises:
      ValueError: the architecture cannot express the model (the message names the field), or a special token
        is not in the vocabulary.
    """
    config = model.config
    if companions is None:
        settings = tokenizer_config or {}
        templates = named_templates(settings.get("chat_template"), "tokenizer_config")
        companions = Companions(tokenizer, settings, templates, extra or {})
    ids = companions.special_ids(config.vocab_size, directory)
    texts = companions.texts(ids, config.max_positions)
    if architecture == NATIVE:
        raw = native.write_config(config)
        places: tensors.Places = tensors.native_places
        texts[native.CODE] = native.modelling_code()
    else:
        if config.quantize:
            raise ValueError(
                f"the weights are {config.quantize} codes, for which {architecture} has no place; save the "
                f"float model as {architecture}, or this one as {NATIVE}"
            )
        raw = translate.write_config(architecture, config)
        places = translate.family_places(architecture, config)
    dumped, keep = tensors.dump(model, places), companions.tokenizer is None
    checkpoint_dir.write(Path(directory), raw | id_fields(ids), dumped, texts, keep_tokenizer=keep)


def load(
    path: str | Path,
    *,
    dtype: str | None = None,
    quantize: str = "",
    shardings: tensors.Shardings | None = None,
    skip: Callable[[tensors.ParamPath], bool] = lambda path: False,
) -> tuple[Transformer, ModelConfig]:
    """Reads a model of any known architecture.

    Args:
      path: a directory, or a GGUF file (any of its quantisation types).
      dtype: dtype of the weights in memory; None = the config's.
      quantize: "int8" rounds the weights as they are read (`mixattn.quantize`), so that memory never holds
        more than one of them in full; "" = as they are. A quantised checkpoint stays quantised.
      shardings: parameter path and shape -> its sharding; None = the default device. Not with `quantize`.
      skip: parameters, by path, that stay empty because somebody else reads them. Not with `quantize`.

    Raises:
      ValueError: not a checkpoint, an unknown architecture, or a tensor that does not fit (the message names
        it and both shapes).
    """
    source = open_source(path)
    raw = source.config()
    config = _config(raw, path)
    places: tensors.Places = tensors.native_places
    head = embedding = ""
    if (model_type := raw.get("model_type", "")) != NATIVE:
        names = translate.family_of(model_type).tensors
        head, embedding = names["lm_head.kernel"], names["embed.table"]
    found = source.tensors()
    if config.tied and head in found and not _equal(found, head, embedding):
        warnings.warn(
            f"{path} says that its head is tied, but holds another one, which is used", stacklevel=2
        )
        config = dataclasses.replace(config, tied=False)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)
    if model_type != NATIVE:
        places = translate.family_places(model_type, config)

    def ignored(name: str) -> bool:
        return translate.is_derived_tensor(name) or (config.tied and name == head)

    with _named(path):
        if not quantize or config.quantize == quantize:
            return tensors.load(found, config, places, ignored, shardings, skip), config
        if shardings is not None:
            raise ValueError(f"shardings and quantize={quantize!r} cannot be given together")
        read = tensors.reader(found, config, places, ignored)
        config = dataclasses.replace(config, quantize=quantize)
        return quantized.build(config, read), config


def read_config(path: str | Path) -> ModelConfig:
    """The config of the model at `path`, without its weights.

    Raises:
      ValueError: as `load`.
    """
    return _config(open_source(path).config(), path)


def companions(path: str | Path) -> Companions:
    """Tokenizer, templates and settings of a checkpoint, for `save`.

    Raises:
      ValueError: one of the files is damaged; the message names it.
    """
    source = open_source(path)
    raw = {} if _is_vocabulary(source) else source.config()
    return Companions(
        source.tokenizer() if source.has_tokenizer() else None,
        source.tokenizer_settings(),
        source.templates(),
        source.generation(),
        {name: raw[name] for name in _TOKEN_IDS if name in raw},
    )


def special_ids(path: str | Path) -> SpecialIds:
    """The ids of the tokens that begin, end and pad a text, wherever the checkpoint says so.

    Raises:
      ValueError: names the file, the field and the value that is no token of the vocabulary.
    """
    return companions(path).special_ids(_vocab_size(path), path)


def _vocab_size(path: str | Path) -> int:
    """Tokens of the vocabulary; those of the tokenizer where a GGUF file holds nothing else."""
    source = open_source(path)
    return source.tokenizer().get_vocab_size() if _is_vocabulary(source) else read_config(path).vocab_size


def _is_vocabulary(source: CheckpointSource) -> bool:
    return isinstance(source, GGUFSource) and source.is_vocabulary


def stop_ids(path: str | Path) -> list[int]:
    """The end-of-text token ids that a checkpoint declares, possibly none.

    generation_config.json takes precedence over config.json, and that over the name in tokenizer_config.json.

    Raises:
      ValueError: as `special_ids`.
    """
    return list(special_ids(path).eos)


def end_token(path: str | Path, named: str = "") -> int:
    """The id that ends a text, of a checkpoint, of a folder with a tokenizer.json, or of that file alone.

    Args:
      named: the token's text, where it is not the usual one.

    Raises:
      ValueError: no such token is known.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".json":
        settings = read_settings(path.parent)
        return tokenizer_file.end_token(read_tokenizer(path, settings), settings, named, path)
    source = open_source(path)
    return tokenizer_file.end_token(source.tokenizer(), source.tokenizer_settings(), named, path)


def generation_settings(path: str | Path) -> dict[str, Any]:
    """What generation_config.json says: token ids and sampling defaults, possibly nothing."""
    return open_source(path).generation()


def tokenizer_settings(path: str | Path) -> dict[str, Any]:
    """What tokenizer_config.json says, and the chat templates wherever they lie, possibly nothing."""
    source = open_source(path)
    templates = source.templates()
    template = templates["default"] if list(templates) == ["default"] else templates
    return source.tokenizer_settings() | ({"chat_template": template} if templates else {})


def chat_templates(path: str | Path) -> dict[str, str]:
    """The chat templates by name; the usual one is "default"."""
    return open_source(path).templates()


def has_tokenizer(path: str | Path) -> bool:
    """Whether the checkpoint comes with a tokenizer."""
    return open_source(path).has_tokenizer()


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """The checkpoint's tokenizer, which neither cuts nor pads; see `mixattn.hf.tokenizer_file`.

    Raises:
      ValueError: it is missing, unreadable or of an unknown kind.
    """
    return open_source(path).tokenizer()


def _config(raw: dict[str, Any], path: str | Path) -> ModelConfig:
    model_type = raw.get("model_type", "")
    with _named(path):
        return native_config(raw) if model_type == NATIVE else translate.read_config(model_type, raw)


class _named:
    """Puts the checkpoint's path in front of a ValueError that does not name it."""

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, why: BaseException | None, trace: object) -> None:
        if type(why) is ValueError and self._path not in str(why):
            raise ValueError(f"{self._path}: {why}") from why


def _equal(found: tensors.TensorSource, one: str, other: str) -> bool:
    """Whether two tensors hold the same values; a part at a time."""
    if other not in found or found.shape(one) != found.shape(other):
        return False
    a, b = (found.read(name, np.dtype(np.float32)) for name in (one, other))
    return all(
        np.array_equal(a[i : i + _COMPARED_ROWS], b[i : i + _COMPARED_ROWS])
        for i in range(0, len(a), _COMPARED_ROWS)
    )
