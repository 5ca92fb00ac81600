"""A checkpoint directory in the Hugging Face layout: tensors are read lazily, writes are atomic.

    config.json  tokenizer.json  model.safetensors                                                one file
    config.json  tokenizer.json  model-0000i-of-0000n.safetensors  model.safetensors.index.json   shards

`config.json` marks a complete directory: it is removed before any other file changes, and written last.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mixattn.hf.safetensors_file import save_aligned
from mixattn.tools.files import write_text

GENERATION = "generation_config.json"
TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
CONFIG, TOKENIZER, SINGLE, INDEX = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
SHARD_BYTES = 4 * 2**30


# safetensors' names of the types that a model's weights may have
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}


class _Place(NamedTuple):
    """Where a tensor lies: its file, safetensors type, shape, and offset in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class TensorLocation(NamedTuple):
    """Where a tensor's bytes lie, for readers that map nothing.

    Attributes:
      offset: first byte within the file.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors:
    """The tensors of a checkpoint directory by name, each mapped into memory on access.

    Raises:
      ValueError: the weights are missing, or a file is not valid safetensors.
    """

    def __init__(self, directory: Path):
        self._places: dict[str, _Place] = {}
        if (directory / INDEX).exists():
            weight_map = read_json(directory / INDEX).get("weight_map", {})
            files = [directory / name for name in sorted(set(weight_map.values()))]
        else:
            files = [directory / SINGLE]
        for file in files:
            self._places |= _places(file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def location(self, name: str) -> TensorLocation:
        """Where the tensor's bytes lie.

        Raises:
          ValueError: a type that numpy cannot hold.
        """
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise ValueError(f"tensor {name} of {place.file} has type {place.dtype}, which is not supported")
        stored = np.dtype(getattr(ml_dtypes, _DTYPES[place.dtype], _DTYPES[place.dtype]))
        return TensorLocation(place.file, place.offset, place.shape, stored)

    def read(self, name: str, dtype: np.dtype | None = None) -> np.ndarray:
        """The values; a view of the file where `dtype` is None or the file's."""
        place = self.location(name)
        if not place.size:
            return np.empty(place.shape, dtype or place.dtype)
        # A map per tensor leaves memory with the tensor; one of the whole file would stay.
        data = np.memmap(place.file, np.uint8, "r", place.offset, place.size)
        values = np.asarray(data).view(place.dtype).reshape(place.shape)
        return values if dtype is None else values.astype(dtype, copy=False)


def _places(file: Path) -> dict[str, _Place]:
    """Where the tensors of one file lie. The library checks the header, and that the file is complete."""
    if not file.exists():
        raise ValueError(f"{file.parent} has no {file.name}; a checkpoint directory needs its weights")
    try:
        with safe_open(file, framework="np"):
            pass
    except SafetensorError as why:
        raise ValueError(f"{file} is not a complete safetensors file: {why}") from why
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {
        name: _Place(file, about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
        for name, about in header.items()
        if name != "__metadata__"
    }


def read_json(path: Path) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
      ValueError: the file is missing, or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}; is it a checkpoint directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as why:
        raise ValueError(f"{path} is not JSON: {why}") from why
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def write(
    directory: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    tokenizer: str | None,
    shard_bytes: int = SHARD_BYTES,
    generation: dict[str, Any] | None = None,
    tokenizer_config: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint directory, replacing one that is there.

    Args:
      tensors: names and values; a generator is consumed one shard at a time.
      tokenizer: contents of tokenizer.json; None keeps the file that is there.
      shard_bytes: maximum size of one weight file.
      generation: contents of generation_config.json.
      tokenizer_config: contents of tokenizer_config.json; None keeps the file that is there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    for old in [*directory.glob("model*.safetensors"), directory / INDEX, directory / GENERATION]:
        old.unlink(missing_ok=True)
    if tokenizer is not None:
        write_text(directory / TOKENIZER, tokenizer)
    if tokenizer_config:
        write_text(directory / TOKENIZER_CONFIG, json.dumps(tokenizer_config, indent=2) + "\n")
    if generation:
        write_text(directory / GENERATION, json.dumps(generation, indent=2) + "\n")
    _write_shards(directory, tensors, shard_bytes)
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")


def _write_shards(directory: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    parts: list[tuple[Path, list[str]]] = []
    total_bytes = 0
    for i, shard in enumerate(_shards(tensors, shard_bytes)):
        part = directory / f".model-{i}.partial"
        with _removed_on_error(part):
            save_aligned(shard, part)
        parts.append((part, list(shard)))
        total_bytes += sum(x.nbytes for x in shard.values())
    if len(parts) == 1:
        os.replace(parts[0][0], directory / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, (part, names) in enumerate(parts):
        name = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        os.replace(part, directory / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")


def _shards(tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if shard and sum(x.nbytes for x in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = np.ascontiguousarray(tensor)
    yield shard


@contextlib.contextmanager
def _removed_on_error(part: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise
