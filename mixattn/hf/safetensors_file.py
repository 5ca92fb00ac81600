"""Writes safetensors files whose tensors begin at multiples of 64 bytes.

The library pads its header to 8 bytes. With 64, a mapped file's tensors are aligned as XLA wants its inputs
on a CPU, which then takes them where they lie: a model loads without a copy of its weights.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ALIGNMENT = 64
# The format's names of the types that weights are stored in.
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}


def save_aligned(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes contiguous `tensors` to `path`.

    The format allows no gap between tensors, so those of odd sizes come last and may be unaligned.

    Raises:
      ValueError: a type that weights are not stored in.
    """
    names = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        value = tensors[name]
        if value.dtype.name not in _NAMES:
            raise ValueError(f"tensor {name} has type {value.dtype}, which weights are not stored in")
        begin, end = end, end + value.nbytes
        header[name] = {
            "dtype": _NAMES[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    size = struct.calcsize("<Q")
    text += b" " * (math.ceil((size + len(text)) / ALIGNMENT) * ALIGNMENT - size - len(text))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(tensors[name].reshape(-1).view(np.uint8).data)
