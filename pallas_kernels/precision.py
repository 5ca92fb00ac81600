"""What sums are kept in."""

import jax.numpy as jnp


def accumulator(dtype) -> jnp.dtype:
    """float32 whatever the inputs; float64 for float64, so that definitions can be checked exactly."""
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")
