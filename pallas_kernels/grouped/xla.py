"""Grouped matmul in plain XLA.

On the CPU: one loop over blocks of rows, each block within one group, so the work is that of the rows plus
at most one block per group. A block that reaches past the end of its group writes wrong values to rows of
the next group; the blocks of that group overwrite them, and rows behind the last group are zeroed at the
end. The gradients are two more such loops.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dispatch import platform
from pallas_kernels.grouped import GroupedCall, result_dtype
from pallas_kernels.typing import accumulator_dtype

BLOCKS = (8, 128)  # the smallest and the largest block, in rows


def unsupported(call: GroupedCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return None


def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """Returns y_MF."""
    if platform() != "cpu":
        return lax.ragged_dot(x_MD, w_EDF, group_sizes_E, preferred_element_type=result_dtype(x_MD.dtype))
    return _blocked(x_MD, w_EDF, group_sizes_E)


@jax.custom_vjp
def _blocked(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    return _rows_times(x_MD, w_EDF, group_sizes_E, transposed=False)


type Saved = tuple[jax.Array, jax.Array, jax.Array]


def _forward(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> tuple[jax.Array, Saved]:
    return _blocked(x_MD, w_EDF, group_sizes_E), (x_MD, w_EDF, group_sizes_E)


def _backward(saved: Saved, dy_MF: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_MD, w_EDF, group_sizes_E = saved
    dx_MD = _rows_times(dy_MF, w_EDF, group_sizes_E, transposed=True)
    return dx_MD, _outer_sums(x_MD, dy_MF, w_EDF, group_sizes_E), None


_blocked.defvjp(_forward, _backward)


def _plan(M: int, E: int, group_sizes_E: jax.Array) -> tuple[int, jax.Array, jax.Array, jax.Array]:
    """Block height b, the first row and the group of each of at most M // b + E blocks, and their number."""
    b = BLOCKS[0]
    while b < BLOCKS[1] and b * E < M:
        b *= 2
    count_E = -(-group_sizes_E // b)
    last_E = jnp.cumsum(count_E)
    block_X = jnp.arange(M // b + E, dtype=jnp.int32)
    group_X = jnp.minimum(jnp.searchsorted(last_E, block_X, side="right"), E - 1).astype(jnp.int32)
    start_E = jnp.cumsum(group_sizes_E) - group_sizes_E
    row_X = start_E[group_X] + (block_X - (last_E - count_E)[group_X]) * b
    return b, row_X, group_X, last_E[-1]


def _rows_times(
    x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, *, transposed: bool
) -> jax.Array:
    """Each row times its group's matrix, or that matrix transposed."""
    M, E, F = x_MD.shape[0], w_EDF.shape[0], w_EDF.shape[1 if transposed else 2]
    b, row_X, group_X, blocks = _plan(M, E, group_sizes_E)
    dtype = result_dtype(x_MD.dtype)
    x_MD = jnp.pad(x_MD, ((0, b), (0, 0)))

    def one_block(i: jax.Array, y_MF: jax.Array) -> jax.Array:
        x_bD = lax.dynamic_slice_in_dim(x_MD, row_X[i], b)
        w_DF = lax.dynamic_index_in_dim(w_EDF, group_X[i], keepdims=False)
        axes = (((1,), (1 if transposed else 0,)), ((), ()))
        y_bF = lax.dot_general(x_bD, w_DF, axes, preferred_element_type=dtype)
        return lax.dynamic_update_slice_in_dim(y_MF, y_bF, row_X[i], 0)

    y_MF = lax.fori_loop(0, blocks, one_block, jnp.zeros((M + b, F), dtype))[:M]
    return jnp.where((jnp.arange(M) < jnp.sum(group_sizes_E))[:, None], y_MF, 0)


def _outer_sums(x_MD: jax.Array, dy_MF: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """dw[e] = sum over the rows of group e of x^T dy, accumulated in float32."""
    M, E = x_MD.shape[0], w_EDF.shape[0]
    b, row_X, group_X, blocks = _plan(M, E, group_sizes_E)
    end_E = jnp.cumsum(group_sizes_E)
    x_MD, dy_MF = (jnp.pad(z, ((0, b), (0, 0))) for z in (x_MD, dy_MF))
    acc_dtype = accumulator_dtype(x_MD.dtype)

    def one_block(i: jax.Array, dw_EDF: jax.Array) -> jax.Array:
        mine_b1 = (row_X[i] + jnp.arange(b) < end_E[group_X[i]])[:, None]
        x_bD = jnp.where(mine_b1, lax.dynamic_slice_in_dim(x_MD, row_X[i], b), 0)
        dy_bF = lax.dynamic_slice_in_dim(dy_MF, row_X[i], b)
        more_DF = lax.dot_general(x_bD, dy_bF, (((0,), (0,)), ((), ())), preferred_element_type=acc_dtype)
        return dw_EDF.at[group_X[i]].add(more_DF)

    return lax.fori_loop(0, blocks, one_block, jnp.zeros(w_EDF.shape, acc_dtype)).astype(w_EDF.dtype)
