"""Grouped matmul: rows sorted by expert, each group times its expert's matrix.

    y[m] = x[m] @ w[e]   for the rows m of group e; groups are consecutive, from row 0

Axes: M rows (tokens times choices), E experts, D and F widths.

Backends: `reference` (the definition), `gpu` (tokamax, if installed) and `xla`. On the CPU `xla` loops over
blocks of rows, because `lax.ragged_dot` multiplies every row by every expert there. On other platforms it
calls `lax.ragged_dot`, which has a lowering of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.dispatch import Backend, BackendChoice, dispatch
from pallas_kernels.typing import Shaped

__all__ = ["GroupedCall", "explain", "grouped_matmul"]


class GroupedCall(NamedTuple):
    """What a backend may know of a call before it runs: static properties only."""

    shape_MD: tuple[int, ...]
    shape_EDF: tuple[int, ...]
    dtype: jnp.dtype


def grouped_matmul(
    x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, *, backend: Backend | None = None
) -> jax.Array:
    """Multiplies each group by its own matrix; differentiable in x and w.

    Args:
      x_MD, w_EDF: one dtype; of int8 codes the products are exact sums in int32, without a gradient.
      group_sizes_E: int32, rows of each group, not negative, together at most M.
      backend: a backend by name runs or raises; None takes the best of the platform that supports the call.
    Returns:
      y_MF in the dtype of x, int32 for int8; rows behind the last group are 0.
    Raises:
      ValueError: shapes or dtypes disagree.
      NotImplementedError: the named backend does not support the call.
    """
    implementation, _ = dispatch(__name__, backend, _check_call(x_MD, w_EDF, group_sizes_E))
    y_MF: jax.Array = implementation.grouped_matmul(x_MD, w_EDF, group_sizes_E)
    return y_MF


def result_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of the products of operands of `dtype`."""
    return jnp.dtype("int32" if dtype == jnp.int8 else dtype)


def explain(
    x_MD: Shaped, w_EDF: Shaped, group_sizes_E: Shaped, *, backend: Backend | None = None
) -> BackendChoice:
    """The backend that `grouped_matmul` runs with these arguments, and why no better one. Runs nothing."""
    return dispatch(__name__, backend, _check_call(x_MD, w_EDF, group_sizes_E))[1]


def _check_call(x: Shaped, w: Shaped, sizes: Shaped) -> GroupedCall:
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x {x.shape} and w {w.shape} are not [M, D] and [E, D, F]")
    if sizes.shape != w.shape[:1]:
        raise ValueError(f"{w.shape[0]} matrices need {w.shape[0]} group sizes, not {sizes.shape}")
    if x.dtype != w.dtype:
        raise ValueError(f"x and w must share a dtype; they have {x.dtype} and {w.dtype}")
    return GroupedCall(x.shape, w.shape, x.dtype)
