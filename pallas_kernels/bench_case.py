"""What a benchmark of kernels times together, and what its cases are made of."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import paged

type Thunk = Callable[[], Any]


class BenchCase(NamedTuple):
    """Callables that are timed together.

    Attributes:
      against: the run that the ratios of all runs divide by.
    """

    name: str
    runs: dict[str, Thunk]
    against: str
    note: str
    rounds: int = 7


def arrays(*shapes: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def bind(fn: Callable[..., Any], *args: Any, **options: Any) -> Thunk:
    """A jitted call whose arguments are on the device already."""
    compiled = jax.jit(functools.partial(fn, **options))
    return lambda: compiled(*args)


def pool_of(pages: int, page: int, K: int, H: int, **options: Any) -> paged.Pool:
    pool = paged.init(pages, page, K, H, "float32", **options)
    keys, values = arrays(pool.keys.shape, pool.values.shape)
    return paged.Pool(keys, values, pool.layout)
