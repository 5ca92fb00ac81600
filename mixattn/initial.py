"""Random initial values of parameters."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: str) -> nnx.Param:
    """A parameter drawn from N(0, std^2)."""
    return nnx.Param(_normal(rngs.params(), shape, std, dtype))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key: jax.Array, shape: tuple[int, ...], std: float, dtype: str) -> jax.Array:
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def linear_std(d_in: int, n_layers: int, *, residual: bool) -> float:
    """Of a linear map's weights; `residual`: its output is added to the residual stream."""
    return d_in**-0.5 / (math.sqrt(2 * n_layers) if residual else 1)
