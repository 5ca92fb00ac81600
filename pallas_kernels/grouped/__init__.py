"""Grouped matmul: rows sorted by expert, each group times its expert's matrix.

    y[m] = x[m] @ w[e]   for the rows m of group e; groups lie one behind the other, from row 0

Axes: M rows (tokens times choices), E experts, D and F widths.

Bodies: `reference` (the definition), `gpu` (tokamax, if installed) and `xla`. There the CPU walks blocks of
rows, because `lax.ragged_dot` multiplies every row by every expert on it; other platforms have a lowering of
`lax.ragged_dot` of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Backend, Choice, dispatch


class GroupedCall(NamedTuple):
    """What a body may know of a call before it runs: static facts only."""

    shape_MD: tuple[int, ...]
    shape_EDF: tuple[int, ...]
    dtype: jnp.dtype


def grouped_matmul(x_MD, w_EDF, group_sizes_E, *, backend: Backend | None = None) -> jax.Array:
    """Multiplies each group by its own matrix; differentiable in x and w.

    Args:
      x_MD, w_EDF: one dtype.
      group_sizes_E: int32, rows of each group, not negative, together at most M.
      backend: a body by name runs or raises; None takes the platform's best that can.
    Returns:
      y_MF in the dtype of x; rows behind the last group are 0.
    Raises:
      ValueError: shapes or dtypes disagree.
      NotImplementedError: the named body cannot take the call.
    """
    body, _ = dispatch(__name__, backend, _ask(x_MD, w_EDF, group_sizes_E))
    return body.grouped_matmul(x_MD, w_EDF, group_sizes_E)


def explain(x_MD, w_EDF, group_sizes_E, *, backend: Backend | None = None) -> Choice:
    """Which body `grouped_matmul` with these arguments runs, and why better ones do not. Runs nothing."""
    return dispatch(__name__, backend, _ask(x_MD, w_EDF, group_sizes_E))[1]


def _ask(x, w, sizes) -> GroupedCall:
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x {x.shape} and w {w.shape} are not [M, D] and [E, D, F]")
    if sizes.shape != w.shape[:1]:
        raise ValueError(f"{w.shape[0]} matrices need {w.shape[0]} group sizes, not {sizes.shape}")
    if x.dtype != w.dtype:
        raise ValueError(f"x and w must share a dtype; they have {x.dtype} and {w.dtype}")
    return GroupedCall(x.shape, w.shape, x.dtype)
