"""Pages on a device with memory of its own: through pinned host memory, each in a transfer of its own.

    page in host memory -> pinned_host array -> device array

A device with its own memory copies, so the page's buffer is free once the transfer has ended. No transfer is
part of a jitted program: the launcher orders transfers and programs, as it does on a CPU. Compiled and tested
with JAX's memory kinds on a CPU; not measured on a GPU.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from serving.offload.runtime.buffers import ExpertArrays


def pinned(views: Sequence[np.ndarray], device: jax.Device) -> ExpertArrays:
    """Copies of the matrices in pinned host memory."""
    sharding = SingleDeviceSharding(device, memory_kind="pinned_host")
    # jax may alias a host buffer that is aligned, whatever `may_alias` says; a copy of its own never does.
    return tuple(jax.device_put(np.array(view), sharding) for view in views)


class OnDevice:
    """A `Placement`: matrices in the device's memory, by way of pinned memory."""

    def __init__(self, device: jax.Device):
        self._device = device

    def __call__(self, views: Sequence[np.ndarray]) -> ExpertArrays:
        sharding = SingleDeviceSharding(self._device, memory_kind="device")
        arrays = tuple(jax.device_put(page, sharding) for page in pinned(views, self._device))
        return tuple(jax.block_until_ready(arrays))
