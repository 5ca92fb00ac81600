"""Types that the ops share, and the dtype they accumulate in."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# A reference to memory inside a kernel. Pallas exports no public type that covers all of its references.
type Ref = Any
# An array, or the shape and dtype of one.
type Shaped = jax.Array | jax.ShapeDtypeStruct
# The order of a pool's keys: [pages, K, page_size, H] in rows, [pages, K, H, page_size] in columns.
type Layout = Literal["rows", "columns"]
# True runs a TPU kernel under the Pallas interpreter; a `pltpu.InterpretParams` also sets its options.
type Interpret = Any


def accumulator_dtype(dtype: DTypeLike) -> jnp.dtype:
    """float32 for every dtype; float64 for float64, so that tests can check definitions exactly."""
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")
