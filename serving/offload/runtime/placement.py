"""Experts on a device with memory of its own: pages go through pinned host memory, each by one transfer.

    file or host memory -> pinned_host array -> device array -> the slot's buffer, donated: filled in place

No transfer is part of a jitted program: the launcher orders transfers and small programs, as on a CPU. K/V
stay with the host, which attends; a pass moves queries and outputs (the paper computes prompts on the device
alone, this does not). Compiled and tested with JAX's memory kinds on a CPU; not measured on a GPU.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from serving.offload.runtime.buffers import ExpertArrays
from serving.offload.runtime.checkpoint import MixtureCheckpoint
from serving.offload.store import ExpertPage, PageSource, aligned_buffer


class Devices(NamedTuple):
    """Attributes:
    compute: has memory of its own, for weights and hidden states.
    host: attends and keeps K/V.
    """

    compute: jax.Device
    host: jax.Device


def accelerator() -> Devices | None:
    """The device here and its host; None where programs run in the host's own memory."""
    first = jax.devices()[0]
    kinds = {memory.kind for memory in first.addressable_memories()}
    if first.platform == "cpu" or "pinned_host" not in kinds:
        return None
    return Devices(first, jax.local_devices(backend="cpu")[0])


def pinned(views: Sequence[np.ndarray], device: jax.Device) -> ExpertArrays:
    """Copies of the matrices in pinned host memory."""
    sharding = SingleDeviceSharding(device, memory_kind="pinned_host")
    # jax may alias a host buffer that is aligned, whatever `may_alias` says; a copy of its own never does.
    return tuple(jax.device_put(np.array(view), sharding) for view in views)


class PinnedSource(Protocol):
    """Where pages in pinned host memory come from."""

    def pinned_page(self, page: ExpertPage) -> ExpertArrays: ...
    def moved_bytes(self, page: ExpertPage) -> int:
        """As of a `PageSource`."""
        ...


class PinnedReader:
    """Pages of another source, each copied to pinned memory when it is asked for; one thread at a time."""

    def __init__(self, source: PageSource, page_bytes: int, device: jax.Device):
        self._source, self._staging, self._device = source, aligned_buffer(page_bytes), device

    def pinned_page(self, page: ExpertPage) -> ExpertArrays:
        """Raises OSError, ValueError: reading failed."""
        return pinned(self._source.read_page(page, self._staging), self._device)

    def moved_bytes(self, page: ExpertPage) -> int:
        return self._source.moved_bytes(page)


class PinnedPages:
    """Pages that were read once and stay in pinned memory."""

    def __init__(self, reader: PinnedSource, pages: Iterable[ExpertPage]):
        self._held = {page: reader.pinned_page(page) for page in pages}

    def pinned_page(self, page: ExpertPage) -> ExpertArrays:
        return self._held[page]

    def moved_bytes(self, page: ExpertPage) -> int:
        return sum(array.nbytes for array in self._held[page])


@functools.partial(jax.jit, donate_argnames="slot")
def put_page(slot: ExpertArrays, page: ExpertArrays) -> ExpertArrays:
    """`page` in the memory of `slot`, whose arrays are gone afterwards."""
    return tuple(lax.dynamic_update_slice(old, new, (0,) * old.ndim) for old, new in zip(slot, page))


class DeviceSlots:
    """Buffers of one expert each in the device's memory, allocated once (see `buffers.ExpertSlots`).

    What a slot held before cannot be used any more: a program that still asked for it would fail, not compute
    something else.
    """

    def __init__(self, count: int, checkpoint: MixtureCheckpoint, source: PinnedSource, device: jax.Device):
        self._on_device = SingleDeviceSharding(device, memory_kind="device")
        self._slots = [
            tuple(jnp.zeros(a.shape, a.dtype, device=self._on_device) for a in checkpoint.arrays)
            for _ in range(count)
        ]
        self._checkpoint, self._source = checkpoint, source
        self.moved_bytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for slot in self._slots for array in slot)

    def read(self, slot: int, layer: int, expert: int) -> ExpertArrays:
        """Fills a slot with an expert; returns when it is there.

        Raises:
          OSError: the disk failed. ValueError: the file is not what it was.
        """
        page = self._checkpoint.pages[layer, expert]
        arrived = jax.device_put(self._source.pinned_page(page), self._on_device)
        self._slots[slot] = jax.block_until_ready(put_page(self._slots[slot], arrived))
        self.moved_bytes += self._source.moved_bytes(page)
        return self._slots[slot]
