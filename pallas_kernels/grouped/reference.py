"""Grouped matmul by its definition: every row times every matrix, then the row's own is picked."""

import jax.numpy as jnp

from pallas_kernels.precision import accumulator


def refuses(ask) -> str | None:
    return None


def grouped_matmul(x_MD, w_EDF, group_sizes_E):
    """Returns y_MF."""
    row_M1 = jnp.arange(x_MD.shape[0])[:, None]
    end_1E = jnp.cumsum(group_sizes_E)[None]
    mine_ME = (row_M1 >= end_1E - group_sizes_E[None]) & (row_M1 < end_1E)
    wide = accumulator(x_MD.dtype)
    all_MEF = jnp.einsum("MD,EDF->MEF", x_MD, w_EDF, precision="highest", preferred_element_type=wide)
    return jnp.sum(jnp.where(mine_ME[..., None], all_MEF, 0), axis=1).astype(x_MD.dtype)
