"""A checkpoint directory in the Hugging Face layout: tensors are read lazily, writes are atomic.

    config.json  model.safetensors                                                one file
    config.json  model-0000i-of-0000n.safetensors  model.safetensors.index.json   shards

and the tokenizer, templates and settings of `mixattn.hf.companions` beside them.

`config.json` marks a complete directory: it is removed before any other file changes, and written last.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mixattn.hf import companions
from mixattn.hf.json_file import read_object
from mixattn.hf.quantised import refuse_codes
from mixattn.hf.safetensors_file import save_aligned
from mixattn.tools.files import write_text

CONFIG, TOKENIZER, SINGLE, INDEX = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
# What other programs write instead of safetensors, and how to get from it to safetensors.
_OTHER_WEIGHTS = ("pytorch_model*.bin", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.msgpack", "*.h5", "*.npz")
_HOW = (
    "open it in transformers and save it again: "
    "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
)
CODES = ".codes"  # how the names of quantised weights end in the native layout
SHARD_BYTES = 4 * 2**30
_LFS = b"version https://git-lfs"


# safetensors' names of the types that a model's weights may have
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
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

    Args:
      codes: tensors that end in ".codes" are int8; else no tensor may be of whole numbers.

    Raises:
      ValueError: the weights are missing, or a file is not valid safetensors.
    """

    def __init__(self, directory: Path, *, codes: bool = False):
        self._codes = codes
        self._places: dict[str, _Place] = {}
        index = directory / INDEX
        weight_map = _weight_map(index) if index.exists() else {}
        files = [directory / name for name in sorted(set(weight_map.values()))] or [directory / SINGLE]
        for file in files:
            for name, place in _places(file).items():
                if name in self._places:
                    raise ValueError(f"tensor {name} is in {self._places[name].file} and in {file}")
                self._places[name] = place
        if missing := sorted(weight_map.keys() - self._places.keys()):
            file = directory / weight_map[missing[0]]
            raise ValueError(f"{index} says that {file.name} has tensor {missing[0]}, which it has not")

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
        if self._codes and name.endswith(CODES):
            if place.dtype != "I8":
                raise ValueError(f"tensor {name} of {place.file} has type {place.dtype}; codes are I8")
            return TensorLocation(place.file, place.offset, place.shape, np.dtype(np.int8))
        refuse_codes(name, place.file, place.dtype)
        if place.dtype not in _DTYPES:
            raise ValueError(f"tensor {name} of {place.file} has type {place.dtype}, which is not supported")
        stored = np.dtype(getattr(ml_dtypes, _DTYPES[place.dtype], _DTYPES[place.dtype]))
        return TensorLocation(place.file, place.offset, place.shape, stored)

    def read(self, name: str, dtype: np.dtype | None = None) -> np.ndarray:
        """The values; a view of the file where `dtype` is None or the file's."""
        place = self.location(name)
        if not place.size:
            return np.empty(place.shape, dtype or place.dtype)
        _read_ahead(place.file, place.offset, place.size)
        # A map per tensor leaves memory with the tensor; one of the whole file would stay.
        data = np.memmap(place.file, np.uint8, "r", place.offset, place.size)
        values = np.asarray(data).view(place.dtype).reshape(place.shape)
        return values if dtype is None else values.astype(dtype, copy=False)


def _read_ahead(file: Path, offset: int, size: int) -> None:
    """Starts to read a part of a file, which would otherwise be read page by page at its first use."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def _places(file: Path) -> dict[str, _Place]:
    """Where the tensors of one file lie. The library checks the header, and that the file is complete."""
    if file.is_symlink() and not file.exists():
        raise ValueError(f"{file} is a link to {file.readlink()}, which is not there")
    if not file.exists():
        raise ValueError(_no_weights(file))
    if not file.is_file():
        raise ValueError(f"{file} is not a file")
    with file.open("rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            raise ValueError(f"{file} only says where Git LFS has the weights; fetch them by `git lfs pull`")
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


def _weight_map(index: Path) -> dict[str, str]:
    """Which file has which tensor; only plain names of files beside the index are taken."""
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} has no weight_map, which says which file has which tensor")
    for tensor, name in names.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index} names the file {name!r} for tensor {tensor}, which is no file beside it"
            )
    return names


def _no_weights(file: Path) -> str:
    """Why there are no weights, with what there is instead."""
    folder = file.parent
    what = f"{folder} has no {file.name}"
    if file.name != SINGLE:
        return f"{what}, which {INDEX} names"
    if shards := sorted(path.name for path in folder.glob("*.safetensors")):
        more = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        return f"{what} and no {INDEX} for {shards[0]}{more}; {_HOW}"
    for pattern in _OTHER_WEIGHTS:
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f"{what}, only {found[0]}, which is not safetensors; {_HOW}"
    return f"{what}; a checkpoint directory needs its weights"


def write(
    directory: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    texts: Mapping[str, str] | None,
    shard_bytes: int = SHARD_BYTES,
    keep_tokenizer: bool = False,
) -> None:
    """Writes a checkpoint directory, replacing one that is there.

    Args:
      tensors: names and values; a generator is consumed one shard at a time.
      texts: contents of the files beside config and weights, by name; None keeps those that are there.
      shard_bytes: maximum size of one weight file.
      keep_tokenizer: keeps the tokenizer that is there, and its templates and settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    for old in [*directory.glob("model*.safetensors"), directory / INDEX]:
        old.unlink(missing_ok=True)
    if texts is not None:
        olds = [*directory.glob("modeling_*.py"), directory / companions.GENERATION]
        if not keep_tokenizer:
            olds += [*(directory / companions.MORE_TEMPLATES).glob("*.jinja")]
            olds += [directory / name for name in companions.FILES]
        for old in olds:
            old.unlink(missing_ok=True)
    for name, text in (texts or {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_text(directory / name, text)
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
