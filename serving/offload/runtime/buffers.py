"""Experts in memory: those that stay, and two layer buffers that pages are read into.

Memory is allocated once. Before a buffer is filled it is checked that the layer that used it has been
computed, and before an expert is used that it has arrived: a schedule that forgot to wait ends in a
`RaceError`, not in wrong numbers.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from serving.offload.runtime.checkpoint import MixtureCheckpoint
from serving.offload.store import LINE, PageSource, aligned_buffer

type ExpertArrays = tuple[jax.Array, ...]


class RaceError(RuntimeError):
    """A task ran before what it needs was there, or before a buffer was free."""


class ExpertSlots(Protocol):
    """Buffers of one expert each, allocated once.

    Attributes:
      moved_bytes: read into them so far.
    """

    moved_bytes: int

    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def read(self, slot: int, layer: int, expert: int) -> ExpertArrays:
        """Fills a slot with an expert."""
        ...


def in_place(views: Sequence[np.ndarray]) -> ExpertArrays:
    """Arrays over the same memory; it must not change while a program uses them.

    Raises:
      ValueError: a view begins where jax would copy it, which would be a second buffer that nobody counts.
    """
    device = jax.local_devices(backend="cpu")[0]
    arrays = []
    for view in views:
        if view.ctypes.data % LINE:
            raise ValueError(
                f"a matrix at address {view.ctypes.data:#x} is not at a multiple of {LINE} bytes"
            )
        arrays.append(jax.device_put(view, device, may_alias=True))
    return tuple(arrays)


class Slots:
    """Buffers of one expert each, which programs on a CPU use in place (see `ExpertSlots`).

    Args:
      poison: fill a slot with NaN before it is read into, so that whoever reads too early gets NaN.
    """

    def __init__(
        self,
        count: int,
        checkpoint: MixtureCheckpoint,
        source: PageSource,
        *,
        poison: bool = False,
    ):
        self._buffers = [aligned_buffer(checkpoint.slot_bytes) for _ in range(count)]
        self._checkpoint, self._source, self._poison = checkpoint, source, poison
        self.moved_bytes = 0

    def __len__(self) -> int:
        return len(self._buffers)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def read(self, slot: int, layer: int, expert: int) -> ExpertArrays:
        """Fills a slot with an expert.

        Raises:
          OSError: the disk failed. ValueError: the file is not what it was.
        """
        page = self._checkpoint.pages[layer, expert]
        buffer = self._buffers[slot]
        if self._poison:
            buffer.fill(0xFF)  # NaN in every floating-point type
        views = self._source.read_page(page, buffer)
        self.moved_bytes += self._source.moved_bytes(page)
        return in_place(views)


class ResidentExperts:
    """Experts that are read once and stay."""

    def __init__(self, chosen: Sequence[tuple[int, int]], slots: ExpertSlots):
        self.arrays = {at: slots.read(slot, *at) for slot, at in enumerate(chosen)}
        self._slots = slots  # owns the memory


class LayerBuffers:
    """Two buffers, each for the experts of a layer that do not stay.

    The layer behind the last stands for the first one that streams, in the next pass (see
    `serving.offload.schedule`); `next_pass` gives its buffer the first one's name.

    Args:
      streamed: mixture layer -> its experts that are read in every pass.
      behind: the number of the layer behind the last.
      slots: at least twice as many as the most experts of a layer.
      taken: the slots to use; all by default.
    """

    def __init__(
        self,
        streamed: Mapping[int, Sequence[int]],
        slots: ExpertSlots,
        behind: int,
        taken: Sequence[int] | None = None,
    ):
        most = max(map(len, streamed.values()), default=0)
        free = list(range(len(slots))) if taken is None else list(taken)
        if len(free) < 2 * most:
            raise ValueError(f"two layer buffers of {most} experts need {2 * most} slots, not {len(free)}")
        self.first, self._behind = min(streamed), behind
        self.streamed, self._slots = {**streamed, behind: streamed[self.first]}, slots
        self._lock = threading.Lock()  # the reading lane fills while the device's releases
        self._halves = (free[:most], free[most : 2 * most])
        self.reset()

    def reset(self) -> None:
        """Forgets what was read, for example after a failure."""
        self._held: dict[int, dict[int, ExpertArrays]] = {}
        self._side: dict[int, int] = {}  # layer in a buffer -> which
        self._next = 0

    def page(self, layer: int, part: int, parts: int) -> list[int]:
        """The experts of page `part` of `parts`; pages differ by at most one expert, some may be empty."""
        experts = self.streamed[layer]
        return list(experts[part * len(experts) // parts : (part + 1) * len(experts) // parts])

    def holds(self, layer: int) -> bool:
        """Whether all of a layer's experts have arrived."""
        return len(self._held.get(layer, ())) == len(self.streamed[layer]) and layer in self._side

    def fill(self, layer: int, part: int, parts: int) -> None:
        """Reads one page.

        Raises:
          RaceError: the buffer still holds another layer.
          OSError, ValueError: as `Slots.read`.
        """
        if part == 0:
            self._begin(layer)
        if layer not in self._side:
            raise RaceError(f"page {part} of layer {layer} is read before its first page")
        half = self._halves[self._side[layer]]
        for expert in self.page(layer, part, parts):
            slot = half[list(self.streamed[layer]).index(expert)]
            real = self.first if layer == self._behind else layer
            self._held[layer][expert] = self._slots.read(slot, real, expert)

    def _begin(self, layer: int) -> None:
        """Takes the buffer that is next."""
        with self._lock:
            if taken := [other for other, side in self._side.items() if side == self._next]:
                raise RaceError(f"layer {taken[0]} still needs the buffer that layer {layer} is read into")
            if layer in self._side:
                raise RaceError(f"layer {layer} is read again before it was computed")
            self._side[layer], self._held[layer] = self._next, {}
            self._next = 1 - self._next

    def expert(self, layer: int, expert: int) -> ExpertArrays:
        """The arrays of an expert.

        Raises:
          RaceError: it has not arrived.
        """
        found = self._held.get(layer, {}).get(expert)
        if found is None:
            raise RaceError(f"expert {expert} of layer {layer} is used before it has arrived")
        return found

    def release(self, layer: int) -> None:
        """The layer has been computed; its buffer may be filled again."""
        with self._lock:
            self._side.pop(layer, None)
            self._held.pop(layer, None)

    def next_pass(self) -> None:
        """What was read for the layer behind the last is the first layer's now."""
        if self._behind in self._side:
            self._side[self.first] = self._side.pop(self._behind)
            self._held[self.first] = self._held.pop(self._behind)
