"""Our parameters and a checkpoint's tensors: one table, read in both directions.

A `TensorPlace` says where one of our parameters lies in a checkpoint: under one name, or (experts) stacked
from one name per row; transposed where the checkpoint keeps [out, in] and we keep [in, out].
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

type Path = str  # of a parameter: "blocks.0.attention.q.kernel"
type Places = Callable[[Path], "TensorPlace"]
type Shardings = Callable[[Path, tuple[int, ...]], Any]  # path, shape -> jax.sharding.Sharding


class TensorPlace(NamedTuple):
    """Attributes:
    names: one tensor, or the rows of a stack.
    transpose: swap the two axes of each tensor.
    stacked: the parameter has one more axis in front, one row a name.
    """

    names: tuple[str, ...]
    transpose: bool = False
    stacked: bool = False


def native(path: Path) -> TensorPlace:
    """Our own layout: every parameter under its path."""
    return TensorPlace((path,))


def abstract(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The model without weights: structure, and parameters as shapes."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))


def dotted(path: tuple[Any, ...]) -> Path:
    return ".".join(map(str, path))


def load(
    tensors: Tensors,
    config: ModelConfig,
    places: Places,
    ignore: Callable[[str], bool] = lambda name: False,
    shardings: Shardings | None = None,
) -> Transformer:
    """Fills a model tensor by tensor, each straight to its dtype and device; never two copies of the whole.

    Raises:
      ValueError: a tensor is missing, left over, or of another shape.
    """
    graphdef, shapes = abstract(config)
    flat = nnx.to_flat_state(shapes)
    wanted = [(places(dotted(path)), param.get_value().shape) for path, param in flat]
    _check(tensors, wanted, ignore)
    dtype = np.dtype(getattr(ml_dtypes, config.dtype, config.dtype))
    filled = []
    for (path, param), (place, shape) in zip(flat, wanted):
        where = shardings(dotted(path), shape) if shardings else None
        value = _read(tensors, place).astype(dtype, copy=False)
        filled.append((path, param.replace(jax.device_put(value, where))))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _check(
    tensors: Tensors, wanted: list[tuple[TensorPlace, tuple[int, ...]]], ignore: Callable[[str], bool]
) -> None:
    """Refuses a checkpoint that does not fit before any weight is read."""
    for place, shape in wanted:
        row = shape[1:] if place.stacked else shape
        want = row[::-1] if place.transpose else row
        for name in place.names:
            if name not in tensors:
                raise ValueError(f"tensor {name} of shape {want} is missing from the checkpoint")
            if tensors.shape(name) != want:
                raise ValueError(f"tensor {name} has shape {tensors.shape(name)}; the model needs {want}")
    used = {name for place, _ in wanted for name in place.names}
    left = sorted(name for name in tensors if name not in used and not ignore(name))
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        shape = tensors.shape(left[0])
        raise ValueError(f"tensor {left[0]} of shape {shape}{more}: the model has no such parameter")


def _read(tensors: Tensors, place: TensorPlace) -> np.ndarray:
    rows = [tensors.read(name).T if place.transpose else tensors.read(name) for name in place.names]
    return np.stack(rows) if place.stacked else rows[0]


def dump(model: Transformer, places: Places) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter under its checkpoint name, one at a time."""
    for path, param in nnx.to_flat_state(nnx.split(model)[1]):
        place, value = places(dotted(path)), np.asarray(param.get_value())
        rows = value if place.stacked else [value]
        for name, row in zip(place.names, rows, strict=True):
            yield name, row.T if place.transpose else row
