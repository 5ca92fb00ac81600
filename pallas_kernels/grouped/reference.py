"""Grouped matmul by its definition: every row times every matrix, then a selection of the row's own."""

import jax
import jax.numpy as jnp

from pallas_kernels.grouped import GroupedCall, result_dtype
from pallas_kernels.typing import accumulator_dtype


def unsupported(call: GroupedCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return None


def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """Returns y_MF."""
    row_M1 = jnp.arange(x_MD.shape[0])[:, None]
    end_1E = jnp.cumsum(group_sizes_E)[None]
    mine_ME = (row_M1 >= end_1E - group_sizes_E[None]) & (row_M1 < end_1E)
    acc_dtype = jnp.int32 if x_MD.dtype == jnp.int8 else accumulator_dtype(x_MD.dtype)
    all_MEF = jnp.einsum("MD,EDF->MEF", x_MD, w_EDF, precision="highest", preferred_element_type=acc_dtype)
    return jnp.sum(jnp.where(mine_ME[..., None], all_MEF, 0), axis=1).astype(result_dtype(x_MD.dtype))
