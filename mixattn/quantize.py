"""Makes the 8-bit model of a float model: weights rounded once, activations when it runs.

    small = quantize(model)                              # from memory
    small, config = mixattn.hf.load(path, quantize="int8")   # from a checkpoint, one matrix at a time

Linear maps, experts, token embeddings and the head become codes with a scale per output channel (see
`ModelConfig.quantize`, `pallas_kernels.int8`), about a quarter of float32's bytes. Matrices that meet the
same input become one: q, k and v of an owner, gate and up of a feed-forward. Everything else is kept, up to
factors that `mixattn.smooth` moves between a norm or a matrix and the next one.

Our own and not `qwix`: that rewrites the products of a traced model, so it would quantise a row once for each
matrix, leave one row to XLA's slow path on a CPU, and keep weights in types that no checkpoint here holds.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.hf.tensors import ParamPath, abstract_model, dotted_path
from mixattn.model import Transformer
from mixattn.smooth import SmoothedParams
from mixattn.spec import ModelConfig
from pallas_kernels import int8

type Read = Callable[[ParamPath], Any]  # a parameter of the float model
# What a joined matrix is made of, in the order of its output channels.
JOINED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def quantize(model: Transformer, method: str = "int8", *, smooth: bool = True) -> Transformer:
    """The quantised twin of `model`, which is unchanged.

    Args:
      method: "int8"; with "", or if the model is quantised already, the model itself is returned.
      smooth: move outliers of activations into the weights first (`mixattn.smooth`); one short forward pass.

    Raises:
      ValueError: an unknown method.
    """
    if not method or model.config.quantize == method:
        return model
    config = dataclasses.replace(model.config, quantize=method)
    floats = {dotted_path(path): param.get_value() for path, param in nnx.to_flat_state(nnx.split(model)[1])}
    return build(config, floats.__getitem__, smooth=smooth)


def build(config: ModelConfig, read: Read, *, smooth: bool = True) -> Transformer:
    """The model of a quantised `config`; `read` gives the parameters of the float model, one at a time."""
    if smooth:
        read = SmoothedParams(float_config(config), read)
    graphdef, shapes = abstract_model(config)
    flat = {dotted_path(path): (path, param) for path, param in nnx.to_flat_state(shapes)}
    filled = [
        (flat[path][0], flat[path][1].replace(jax.block_until_ready(value)))
        for stem in dict.fromkeys(map(_stem, flat))
        for path, value in _of_stem(stem, config, flat, read)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def float_config(config: ModelConfig) -> ModelConfig:
    """The config of the float model."""
    return dataclasses.replace(config, quantize="")


def _stem(path: ParamPath) -> ParamPath:
    return path.rpartition(".")[0]


def _of_stem(
    stem: ParamPath, config: ModelConfig, wanted: Any, read: Read
) -> Iterator[tuple[ParamPath, jax.Array]]:
    """The parameters below one module."""
    leaves = [path for path in wanted if _stem(path) == stem]
    if f"{stem}.codes" not in wanted:
        yield from ((path, jnp.asarray(read(path), config.dtype)) for path in leaves)
        return
    floats = float_paths(float_config(config))
    parts = [part for part in _parts(stem) if part in floats or f"{part}.kernel" in floats]
    kernels = [f"{part}.kernel" if f"{part}.kernel" in floats else part for part in parts]
    experts = len(wanted[f"{stem}.codes"][1].get_value().shape) == 3
    weights = tuple(jnp.asarray(read(kernel)) for kernel in kernels)
    codes, scale = _rounded(weights, transposed=kernels[0].endswith(".kernel"), experts=experts)
    yield f"{stem}.codes", codes
    yield f"{stem}.scale", scale
    if f"{stem}.bias" in wanted:
        biases = [jnp.asarray(read(f"{part}.bias"), config.dtype) for part in parts]
        yield f"{stem}.bias", jnp.concatenate(biases)


def _parts(stem: ParamPath) -> list[ParamPath]:
    """The float modules that a quantised one may be made of; a reader has no k and v."""
    above, _, name = stem.rpartition(".")
    names: Sequence[str] = JOINED.get(name, (name,))
    return [f"{above}.{part}" if above else part for part in names]


@functools.lru_cache(maxsize=4)
def float_paths(config: ModelConfig) -> frozenset[ParamPath]:
    """Paths of the parameters of a float model."""
    return frozenset(dotted_path(path) for path, _ in nnx.to_flat_state(abstract_model(config)[1]))


@functools.partial(jax.jit, static_argnames=("transposed", "experts"))
def _rounded(
    weights: tuple[jax.Array, ...], *, transposed: bool, experts: bool
) -> tuple[jax.Array, jax.Array]:
    """Codes and float32 scales of weights joined along their output channels."""
    if experts:
        codes, scale = int8.quantize(jnp.concatenate(weights, axis=2), axis=1)
    else:
        codes, scale = int8.quantize(jnp.concatenate([w.T if transposed else w for w in weights]))
    return codes, scale.astype(jnp.float32)


def weight_bytes(model: Transformer) -> int:
    """Bytes of all parameters."""
    return sum(np.dtype(x.dtype).itemsize * x.size for x in jax.tree.leaves(nnx.split(model)[1]))
