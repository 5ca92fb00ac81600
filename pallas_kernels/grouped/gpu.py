"""Grouped matmul on a GPU by tokamax, if it is installed: Mosaic kernels on Hopper and Blackwell.

Otherwise the `xla` backend runs, whose `lax.ragged_dot` XLA lowers for GPUs itself.
"""

import importlib.util

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import platform
from pallas_kernels.grouped import GroupedCall
from pallas_kernels.typing import accumulator_dtype


def unsupported(call: GroupedCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if importlib.util.find_spec("tokamax") is None:
        return "tokamax is not installed (the gpu extra)"
    if call.dtype == jnp.int8:
        return "tokamax's kernels take no int8"
    return None if platform() == "gpu" else f"tokamax's kernels need a GPU, not a {platform()}"


def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """Returns y_MF."""
    import tokamax  # takes seconds to import

    y_MF = tokamax.ragged_dot(
        x_MD, w_EDF, group_sizes_E, preferred_element_type=accumulator_dtype(x_MD.dtype)
    )
    # The kernel leaves the rows behind the last group undefined.
    in_group_M1 = (jnp.arange(x_MD.shape[0]) < jnp.sum(group_sizes_E))[:, None]
    return jnp.where(in_group_M1, y_MF, 0).astype(x_MD.dtype)
