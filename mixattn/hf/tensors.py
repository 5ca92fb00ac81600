"""Copies our parameters from and to a checkpoint's tensors; one mapping serves both directions.

A `TensorPlace` gives the place of a parameter in a checkpoint: one tensor, or (experts) one tensor per row of
a stack. Tensors that a checkpoint stores as [out, in] are transposed, because ours are [in, out].
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from mixattn.model import Transformer
from mixattn.spec import ModelConfig

type ParamPath = str  # for example "blocks.0.attention.q.kernel"
type Places = Callable[[ParamPath], "TensorPlace"]
type Shardings = Callable[[ParamPath, tuple[int, ...]], jax.sharding.Sharding]


class TensorSlice(NamedTuple):
    """Rows `start` to `stop` of a tensor that has `rows` of them, the others being other parameters'."""

    start: int
    stop: int
    rows: int


class TensorPlace(NamedTuple):
    """Attributes:
    names: one tensor name, or one per row of a stack.
    transpose: whether to swap the two axes of each tensor.
    stacked: whether the parameter has an extra leading axis, one row per name.
    slice: the part of the tensor, before it is transposed; None = all of it.
    """

    names: tuple[str, ...]
    transpose: bool = False
    stacked: bool = False
    slice: TensorSlice | None = None


class TensorSource(Protocol):
    """The tensors of a checkpoint by name, each read on access."""

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        """Its values in `dtype`; possibly a view of the file."""


def native_places(path: ParamPath) -> TensorPlace:
    """The native layout: each parameter is stored under its path."""
    return TensorPlace((path,))


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The model without weights: its structure, and its parameters as shapes."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))


def dotted_path(path: tuple[Any, ...]) -> ParamPath:
    return ".".join(map(str, path))


def load(
    tensors: TensorSource,
    config: ModelConfig,
    places: Places,
    ignore: Callable[[str], bool] = lambda name: False,
    shardings: Shardings | None = None,
    skip: Callable[[ParamPath], bool] = lambda path: False,
) -> Transformer:
    """Builds a model tensor by tensor, each converted and placed on its own, so that only one copy exists.

    The largest come first: the second copy that one needs for a moment then adds least to the peak.

    Args:
      ignore: tensor names that need no parameter in the model.
      shardings: parameter path and shape -> its sharding; None = the default device.
      skip: parameters that are checked but not read; they become empty arrays.

    Raises:
      ValueError: a tensor is missing, unused, or of another shape.
    """
    graphdef, shapes = abstract_model(config)
    flat = nnx.to_flat_state(shapes)
    wanted = [(places(dotted_path(path)), param.get_value().shape) for path, param in flat]
    _check(tensors, wanted, ignore)
    filled: dict[int, Any] = {}
    for i in sorted(range(len(flat)), key=lambda i: -math.prod(wanted[i][1])):
        (path, param), (place, shape) = flat[i], wanted[i]
        sharding = shardings(dotted_path(path), shape) if shardings else None
        dtype = np.dtype(param.get_value().dtype)  # the config's, except for codes and their scales
        skipped = skip(dotted_path(path))
        read = np.empty(0, dtype) if skipped else _read(tensors, place, dtype)
        value = jax.device_put(read, sharding)
        filled[i] = path, param.replace(jax.block_until_ready(value))  # its source can go now
    return nnx.merge(graphdef, nnx.from_flat_state([filled[i] for i in range(len(flat))]))


def reader(
    tensors: TensorSource,
    config: ModelConfig,
    places: Places,
    ignore: Callable[[str], bool] = lambda name: False,
) -> Callable[[ParamPath], np.ndarray]:
    """Reads single parameters of the model in float32 (float64 for float64), as they are asked for.

    Raises:
      ValueError: as `load`, before anything is read.
    """
    flat = nnx.to_flat_state(abstract_model(config)[1])
    wanted = {dotted_path(path): param.get_value().shape for path, param in flat}
    _check(tensors, [(places(path), shape) for path, shape in wanted.items()], ignore)
    dtype = np.dtype("float64" if config.dtype == "float64" else "float32")
    return lambda path: _read(tensors, places(path), dtype)


def _check(
    tensors: TensorSource, wanted: list[tuple[TensorPlace, tuple[int, ...]]], ignore: Callable[[str], bool]
) -> None:
    """Compares names and shapes before any weight is read."""
    for place, shape in wanted:
        row_shape = shape[1:] if place.stacked else shape
        want = row_shape[::-1] if place.transpose else row_shape
        want = want if place.slice is None else (place.slice.rows, *want[1:])
        for name in place.names:
            if name not in tensors:
                raise ValueError(f"tensor {name} of shape {want} is missing from the checkpoint")
            if tensors.shape(name) != want:
                raise ValueError(f"tensor {name} has shape {tensors.shape(name)}; the model needs {want}")
    used = {name for place, _ in wanted for name in place.names}
    unused = sorted(name for name in tensors if name not in used and not ignore(name))
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        shape = tensors.shape(unused[0])
        raise ValueError(f"tensor {unused[0]} of shape {shape}{more}: the model has no such parameter")


def _read(tensors: TensorSource, place: TensorPlace, dtype: np.dtype) -> np.ndarray:
    values = [tensors.read(name, dtype) for name in place.names]
    if place.slice is not None:
        values = [value[place.slice.start : place.slice.stop] for value in values]
    rows = [value.T if place.transpose else value for value in values]
    return np.stack(rows) if place.stacked else rows[0]


def dump(model: Transformer, places: Places) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each parameter with its checkpoint name, one tensor at a time."""
    parts: dict[str, dict[int, np.ndarray]] = {}  # of fused tensors that are not whole yet, by first row
    for path, param in nnx.to_flat_state(nnx.split(model)[1]):
        place, value = places(dotted_path(path)), np.asarray(param.get_value())
        rows = value if place.stacked else [value]
        for name, row in zip(place.names, rows, strict=True):
            tensor = row.T if place.transpose else row
            if place.slice is None:
                yield name, tensor
                continue
            found = parts.setdefault(name, {})
            found[place.slice.start] = tensor
            if sum(map(len, found.values())) == place.slice.rows:
                yield name, np.concatenate([found[start] for start in sorted(parts.pop(name))])
