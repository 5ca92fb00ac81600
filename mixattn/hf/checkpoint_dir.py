"""A checkpoint directory in the Hugging Face layout: tensors are read lazily, writes are atomic.

    config.json  tokenizer.json  model.safetensors                                                one file
    config.json  tokenizer.json  model-0000i-of-0000n.safetensors  model.safetensors.index.json   shards

`config.json` marks a complete directory: it is removed before any other file changes, and written last.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mixattn.tools.files import write_text

GENERATION = "generation_config.json"
CONFIG, TOKENIZER, SINGLE, INDEX = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
SHARD_BYTES = 4 * 2**30


class Tensors:
    """The tensors of a checkpoint directory by name, each read on access.

    Raises:
      ValueError: the weights are missing, or a file is not valid safetensors.
    """

    def __init__(self, directory: Path):
        self._open: dict[Path, Any] = {}
        self._file: dict[str, Path] = {}
        if (directory / INDEX).exists():
            weight_map = read_json(directory / INDEX).get("weight_map", {})
            files = [directory / name for name in sorted(set(weight_map.values()))]
        else:
            files = [directory / SINGLE]
        for file in files:
            self._file |= dict.fromkeys(self._reader(file).keys(), file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._reader(self._file[name]).get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        return self._reader(self._file[name]).get_tensor(name)

    def _reader(self, file: Path) -> Any:
        if file not in self._open:
            if not file.exists():
                raise ValueError(
                    f"{file.parent} has no {file.name}; a checkpoint directory needs its weights"
                )
            try:
                self._open[file] = safe_open(file, framework="np")
            except SafetensorError as why:
                raise ValueError(f"{file} is not a complete safetensors file: {why}") from why
        return self._open[file]


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
) -> None:
    """Writes a checkpoint directory, replacing one that is there.

    Args:
      tensors: names and values; a generator is consumed one shard at a time.
      tokenizer: contents of tokenizer.json; None keeps the file that is there.
      shard_bytes: maximum size of one weight file.
      generation: contents of generation_config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    for old in [*directory.glob("model*.safetensors"), directory / INDEX, directory / GENERATION]:
        old.unlink(missing_ok=True)
    if tokenizer is not None:
        write_text(directory / TOKENIZER, tokenizer)
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
            save_file(shard, part, metadata={"format": "pt"})
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
