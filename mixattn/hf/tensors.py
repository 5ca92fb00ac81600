"""Copies our parameters from and to a checkpoint's tensors; one mapping serves both directions.

A `TensorPlace` gives the place of a parameter in a checkpoint: one tensor, or (experts) one tensor per row of
a stack. Tensors that a checkpoint stores as [out, in] are transposed, because ours are [in, out].
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from mixattn.hf.checkpoint_dir import Tensors
from mixattn.model import Transformer
from mixattn.spec import ModelConfig

type ParamPath = str  # for example "blocks.0.attention.q.kernel"
type Places = Callable[[ParamPath], "TensorPlace"]
type Shardings = Callable[[ParamPath, tuple[int, ...]], jax.sharding.Sharding]


class TensorPlace(NamedTuple):
    """Attributes:
    names: one tensor name, or one per row of a stack.
    transpose: whether to swap the two axes of each tensor.
    stacked: whether the parameter has an extra leading axis, one row per name.
    """

    names: tuple[str, ...]
    transpose: bool = False
    stacked: bool = False


def native_places(path: ParamPath) -> TensorPlace:
    """The native layout: each parameter is stored under its path."""
    return TensorPlace((path,))


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The model without weights: its structure, and its parameters as shapes."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))


def dotted_path(path: tuple[Any, ...]) -> ParamPath:
    return ".".join(map(str, path))


def load(
    tensors: Tensors,
    config: ModelConfig,
    places: Places,
    ignore: Callable[[str], bool] = lambda name: False,
    shardings: Shardings | None = None,
) -> Transformer:
    """Builds a model tensor by tensor, each converted and placed on its own, so that only one copy exists.

    Args:
      ignore: tensor names that need no parameter in the model.
      shardings: parameter path and shape -> its sharding; None = the default device.

    Raises:
      ValueError: a tensor is missing, unused, or of another shape.
    """
    graphdef, shapes = abstract_model(config)
    flat = nnx.to_flat_state(shapes)
    wanted = [(places(dotted_path(path)), param.get_value().shape) for path, param in flat]
    _check(tensors, wanted, ignore)
    dtype = np.dtype(getattr(ml_dtypes, config.dtype, config.dtype))
    filled = []
    for (path, param), (place, shape) in zip(flat, wanted):
        sharding = shardings(dotted_path(path), shape) if shardings else None
        value = _read(tensors, place).astype(dtype, copy=False)
        filled.append((path, param.replace(jax.device_put(value, sharding))))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _check(
    tensors: Tensors, wanted: list[tuple[TensorPlace, tuple[int, ...]]], ignore: Callable[[str], bool]
) -> None:
    """Compares names and shapes before any weight is read."""
    for place, shape in wanted:
        row_shape = shape[1:] if place.stacked else shape
        want = row_shape[::-1] if place.transpose else row_shape
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


def _read(tensors: Tensors, place: TensorPlace) -> np.ndarray:
    rows = [tensors.read(name).T if place.transpose else tensors.read(name) for name in place.names]
    return np.stack(rows) if place.stacked else rows[0]


def dump(model: Transformer, places: Places) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each parameter with its checkpoint name, one tensor at a time."""
    for path, param in nnx.to_flat_state(nnx.split(model)[1]):
        place, value = places(dotted_path(path)), np.asarray(param.get_value())
        rows = value if place.stacked else [value]
        for name, row in zip(place.names, rows, strict=True):
            yield name, row.T if place.transpose else row
