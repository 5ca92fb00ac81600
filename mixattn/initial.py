"""Random initial values of parameters."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: str) -> nnx.Param:
    """A parameter drawn from N(0, std^2)."""
    return nnx.Param(_normal(rngs.params(), shape, std, dtype))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key: jax.Array, shape: tuple[int, ...], std: float, dtype: str) -> jax.Array:
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
