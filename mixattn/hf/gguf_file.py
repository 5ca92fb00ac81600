"""A GGUF file: its metadata, and its tensors, each dequantised when it is read.

The `gguf` package (extra `gguf`) parses the header and knows the quantisation types. Weights stay in the file
until they are read, a few rows at a time, so that reading needs no second copy of them.
"""

import math
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

CHUNK_ELEMENTS = 2**20  # dequantised at a time
_NAMED_DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16"}


class TensorInfo(NamedTuple):
    """Where a tensor lies in the file.

    Attributes:
      quantization: name of its GGML type, for example "Q4_1".
      shape: in elements, slowest axis first.
      offset: bytes from the beginning of the file.
      row_bytes: bytes of one row of the last axis.
    """

    quantization: str
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


class GGUFFile:
    """Metadata and tensors of one GGUF file.

    Attributes:
      metadata: key -> value; arrays are lists.
      infos: tensor name -> its place.

    Raises:
      ValueError: not a GGUF file, truncated, one part of a split model, or a tensor that lies outside it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        gguf = _package()
        size = self.path.stat().st_size
        try:
            reader = gguf.GGUFReader(self.path)
            self.metadata: dict[str, Any] = {name: f.contents() for name, f in reader.fields.items()}
            self.infos = {t.name: _info(gguf, t) for t in reader.tensors}
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as why:
            reason = str(why) or type(why).__name__
            raise ValueError(f"{self.path} ({size:,} bytes) is not a whole GGUF file: {reason}") from why
        if reader.byte_order != "I":
            raise ValueError(f"{self.path} is written in the other byte order than this machine's")
        self._check(size)

    def _check(self, size: int) -> None:
        parts = self.metadata.get("split.count", 0)
        if parts > 1:
            part = self.metadata.get("split.no", 0) + 1
            raise ValueError(
                f"{self.path} is part {part} of {parts}; join them first (llama-gguf-split --merge)"
            )
        for name, info in self.infos.items():
            end = info.offset + info.rows * info.row_bytes
            if end > size:
                raise ValueError(
                    f"{self.path} is truncated: tensor {name} ends at byte {end:,} of a file of {size:,}"
                )

    def read(self, name: str, dtype: np.dtype, index: int | None = None) -> np.ndarray:
        """The tensor's values in `dtype`, shaped as `infos[name].shape`.

        Args:
          index: read only this entry of the first axis.

        Raises:
          ValueError: a type that the `gguf` package cannot dequantise.
        """
        info = self.infos[name]
        shape = info.shape if index is None else info.shape[1:]
        rows, width = math.prod(shape[:-1]), shape[-1]
        offset = info.offset + (index or 0) * rows * info.row_bytes
        raw = np.memmap(self.path, np.uint8, "r", offset, (rows, info.row_bytes))
        values = np.empty((rows, width), dtype)
        step = max(1, CHUNK_ELEMENTS // width)
        for begin in range(0, rows, step):
            values[begin : begin + step] = self._dequantized(name, raw[begin : begin + step])
        return values.reshape(shape)

    def _dequantized(self, name: str, raw: np.ndarray) -> np.ndarray:
        quantization = self.infos[name].quantization
        if quantization in _NAMED_DTYPES:
            plain = _NAMED_DTYPES[quantization]
            return raw.view(np.dtype(getattr(ml_dtypes, plain, plain)))
        gguf = _package()
        try:
            return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[quantization])
        except (NotImplementedError, ValueError) as why:
            raise ValueError(f"tensor {name} of {self.path} has type {quantization}: {why}") from why


def _info(gguf: ModuleType, tensor: Any) -> TensorInfo:
    """The place of one of the reader's tensors."""
    shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
    if not shape or min(shape) < 1:
        raise ValueError(f"tensor {tensor.name} has shape {shape}")
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    if shape[-1] % block:
        raise ValueError(
            f"tensor {tensor.name} has rows of {shape[-1]}; {tensor.tensor_type.name} needs whole {block}s"
        )
    return TensorInfo(
        tensor.tensor_type.name, shape, int(tensor.data_offset), shape[-1] // block * block_bytes
    )


def _package() -> ModuleType:
    """The `gguf` package, an optional dependency.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as why:
        raise ValueError(f"reading GGUF needs the package gguf (pip install 'mixattn[gguf]'): {why}") from why
    return gguf
