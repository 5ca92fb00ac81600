"""Grouped matmul on a GPU by tokamax, where that is installed: Mosaic kernels on Hopper and Blackwell.

Otherwise the `xla` body serves, whose `lax.ragged_dot` XLA lowers for GPUs itself.
"""

import importlib.util

import jax.numpy as jnp

from pallas_kernels.dispatch import platform
from pallas_kernels.precision import accumulator


def refuses(ask) -> str | None:
    if importlib.util.find_spec("tokamax") is None:
        return "tokamax is not installed (the gpu extra)"
    return None if platform() == "gpu" else f"tokamax's kernels need a GPU, not a {platform()}"


def grouped_matmul(x_MD, w_EDF, group_sizes_E):
    """Returns y_MF."""
    import tokamax  # seconds to import, so not before it is needed

    y_MF = tokamax.ragged_dot(x_MD, w_EDF, group_sizes_E, preferred_element_type=accumulator(x_MD.dtype))
    # What lies behind the last group is whatever the kernel left there.
    taken_M1 = (jnp.arange(x_MD.shape[0]) < jnp.sum(group_sizes_E))[:, None]
    return jnp.where(taken_M1, y_MF, 0).astype(x_MD.dtype)
