"""Where experts come from on this machine, and the slots that they are read into."""

from dataclasses import dataclass

from serving.offload import pages
from serving.offload.rounding import RoundedPages
from serving.offload.runtime.buffers import ExpertSlots, Slots
from serving.offload.runtime.checkpoint import MixtureCheckpoint
from serving.offload.runtime.placement import Devices, DeviceSlots, PinnedPages, PinnedReader, PinnedSource
from serving.offload.store import (
    ExpertPage,
    FilePages,
    MemoryPages,
    PackedPages,
    PageReader,
    PageSource,
    Throttle,
    ThrottledPages,
)


@dataclass
class ExpertSource:
    """Where experts come from, with what must be closed.

    Attributes:
      direct: whether reads bypass the page cache. way: the source in words.
      devices: None where programs use experts in the host's memory.
      pinned: in pinned memory, for a device with memory of its own.
    """

    pages: PageSource
    reader: PageReader
    way: str
    devices: Devices | None = None
    pinned: PinnedSource | None = None

    @property
    def direct(self) -> bool:
        return self.reader.direct

    def moved_bytes(self, page: ExpertPage) -> int:
        """Bytes that come over the slow link for a page."""
        return (self.pages if self.pinned is None else self.pinned).moved_bytes(page)

    def close(self) -> None:
        self.reader.close()


def open_source(
    checkpoint: MixtureCheckpoint,
    *,
    in_host_memory: bool = False,
    throttle_Bps: float | None = None,
    devices: Devices | None = None,
) -> ExpertSource:
    """Opens every file that holds experts.

    Args:
      in_host_memory: read them once into host memory and take them from there.
      throttle_Bps: a modelled link, to be named as such.
      devices: see `placement.accelerator`.

    Raises:
      ValueError: a file is missing, or a link is modelled where there is one.
    """
    reader = PageReader(pages.files(checkpoint.pages.values()))
    try:
        return _source(checkpoint, reader, in_host_memory, throttle_Bps, devices)
    except BaseException:
        reader.close()
        raise


def _source(
    checkpoint: MixtureCheckpoint,
    reader: PageReader,
    in_host_memory: bool,
    throttle_Bps: float | None,
    devices: Devices | None,
) -> ExpertSource:
    source: PageSource = FilePages(reader)
    throttle = Throttle(throttle_Bps) if throttle_Bps else None
    way = "files" if reader.direct else "files through the page cache (O_DIRECT is refused)"
    if devices is not None:
        if throttle is not None:
            raise ValueError(f"a link of {throttle_Bps} B/s is modelled, but {devices.compute} has its own")
        source = _rounded(checkpoint, source)
        pinned: PinnedSource = PinnedReader(source, checkpoint.page_bytes, devices.compute)
        if in_host_memory:
            pinned, way = PinnedPages(pinned, checkpoint.pages.values()), "host memory"
        return ExpertSource(source, reader, f"{way}, pinned", devices, pinned)
    source = _rounded(checkpoint, source)
    if in_host_memory:
        source, way = MemoryPages(source, list(checkpoint.pages.values()), throttle), "host memory"
    elif checkpoint.quantize:
        way += f", rounded to {checkpoint.quantize}"
    elif not checkpoint.packed:
        source = PackedPages(source, checkpoint.page_bytes)
        way += ", copied from staging"
    if throttle is not None and throttle_Bps:
        way += f" throttled to {throttle_Bps / 2**20:.0f} MiB/s"
        source = source if in_host_memory else ThrottledPages(source, throttle)
    return ExpertSource(source, reader, way)


def _rounded(checkpoint: MixtureCheckpoint, source: PageSource) -> PageSource:
    if not checkpoint.quantize:
        return source
    return RoundedPages(source, checkpoint.page_bytes, transposed=checkpoint.transposed)


def make_slots(count: int, checkpoint: MixtureCheckpoint, source: ExpertSource) -> ExpertSlots:
    """Slots where the source's experts are used."""
    if source.devices is None or source.pinned is None:
        return Slots(count, checkpoint, source.pages)
    return DeviceSlots(count, checkpoint, source.pinned, source.devices.compute)
