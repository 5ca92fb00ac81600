"""Experts read by page straight from a checkpoint's safetensors files, or from host memory behind a throttle.

No converted copy of the model is written: an expert stays where the checkpoint has it, in the checkpoint's
order and orientation. Reads bypass the page cache (O_DIRECT) into buffers that are allocated once; O_DIRECT
wants offsets, lengths and addresses at multiples of a block, so a read covers the blocks around a tensor and
returns a view of the middle. Where the file system refuses O_DIRECT, reads are buffered and `direct` says so.
"""

import mmap
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np

from mixattn.hf.checkpoint_dir import TensorLocation

BLOCK = 4096
LINE = 64  # bytes; programs use arrays in place that begin at multiples of it


def aligned_buffer(size: int) -> np.ndarray:
    """uint8 [size], at a multiple of the block size and touched, so that no later read pays for it."""
    data = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
    data.fill(0)
    return data[:size]


def covered(offset: int, size: int) -> tuple[int, int]:
    """First byte and number of bytes of the blocks that hold a range."""
    start = offset - offset % BLOCK
    end = -(-(offset + size) // BLOCK) * BLOCK
    return start, end - start


class PageReader:
    """Reads ranges of files that must not change meanwhile.

    Args:
      paths: the files, all opened at once, so that a missing one is noticed before work begins.
      direct: try O_DIRECT; False reads through the page cache.

    Raises:
      ValueError: a file is missing.
    """

    def __init__(self, paths: Iterable[Path], *, direct: bool = True):
        self._files: dict[Path, int] = {}
        self._buffered: dict[Path, int] = {}
        self._identity: dict[Path, tuple[int, int]] = {}
        self.direct = direct and hasattr(os, "O_DIRECT")
        self.bytes_read = 0
        try:
            for path in sorted(set(paths)):
                self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            self._buffered[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise ValueError(f"{path.parent} has no {path.name}; the checkpoint needs it") from None
        status = os.fstat(self._buffered[path])
        self._identity[path] = status.st_size, status.st_mtime_ns
        if not self.direct:
            return
        try:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_DIRECT | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            self.direct = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes every file; may be called again."""
        for opened in (self._files, self._buffered):
            for descriptor in opened.values():
                os.close(descriptor)
            opened.clear()

    def size(self, path: Path) -> int:
        """Bytes of the file when it was opened."""
        return self._identity[path][0]

    def check_unchanged(self) -> None:
        """Raises ValueError if a file was written to since it was opened."""
        for path, identity in self._identity.items():
            status = os.fstat(self._buffered[path])
            if (status.st_size, status.st_mtime_ns) != identity:
                raise ValueError(
                    f"{path} changed while it was used: {identity[0]} bytes before, {status.st_size} now,"
                    " or rewritten"
                )

    def read(self, path: Path, offset: int, out: np.ndarray) -> None:
        """Fills `out`, uint8 on whole blocks (see `aligned_buffer`), with bytes from `offset`, a multiple of
        the block.

        Bytes beyond the end of the file are left as they are. Reads that return less than asked for are
        continued.

        Raises:
          OSError: the disk failed.
          ValueError: the file is shorter than it was.
        """
        wanted = min(len(out), self.size(path) - offset)
        done = 0
        while done < wanted:
            got = self._read_some(path, offset + done, out[done:])
            if got == 0:
                raise ValueError(
                    f"{path} ends at byte {offset + done}; it had {self.size(path)} bytes when it was opened"
                )
            done += got
        self.bytes_read += wanted

    def _read_some(self, path: Path, offset: int, out: np.ndarray) -> int:
        """One read. O_DIRECT is given up at the first refusal; a tail off the blocks is read buffered."""
        if self.direct and offset % BLOCK == 0 and len(out) % BLOCK == 0:
            try:
                return self._pread(self._files[path], out, offset)
            except OSError as why:
                if why.errno != 22:  # EINVAL: the file system does not support it
                    raise
                self.direct = False
        return self._pread(self._buffered[path], out, offset)

    @staticmethod
    def _pread(descriptor: int, out: np.ndarray, offset: int) -> int:
        return os.preadv(descriptor, [out.data], offset)


class ExpertPage(NamedTuple):
    """One expert of one layer: where its matrices lie, in the checkpoint's order and orientation."""

    tensors: tuple[TensorLocation, ...]

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer for the page: each matrix with the blocks around it."""
        return sum(covered(place.offset, place.size)[1] for place in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Bytes of the matrices alone."""
        return sum(place.size for place in self.tensors)

    @property
    def packed_bytes(self) -> int:
        """Bytes of a buffer for the matrices alone, each at a multiple of a line."""
        return sum(-(-place.size // LINE) * LINE for place in self.tensors)

    @property
    def usable_in_place(self) -> bool:
        """Whether each matrix lies at a multiple of a line, as it does wherever its blocks are read to."""
        return all(place.offset % LINE == 0 for place in self.tensors)


class PageSource(Protocol):
    """Where pages come from."""

    def read_page(self, page: ExpertPage, buffer: np.ndarray) -> list[np.ndarray]:
        """Fills `buffer` and returns views of it, one per matrix, as they are stored."""
        ...

    def moved_bytes(self, page: ExpertPage) -> int:
        """Bytes that come over the slow link for a page."""
        ...


class FilePages:
    """Pages from the checkpoint's own files."""

    def __init__(self, reader: PageReader):
        self._reader = reader

    def read_page(self, page: ExpertPage, buffer: np.ndarray) -> list[np.ndarray]:
        """Fills `buffer` (at least `page.buffer_bytes`, aligned).

        Raises:
          ValueError: the buffer is too small, or the file is.
          OSError: the disk failed.
        """
        if len(buffer) < page.buffer_bytes:
            raise ValueError(f"a buffer of {len(buffer)} bytes for a page of {page.buffer_bytes}")
        views, used = [], 0
        for place in page.tensors:
            start, size = covered(place.offset, place.size)
            self._reader.read(place.file, start, buffer[used : used + size])
            first = used + place.offset - start
            views.append(buffer[first : first + place.size].view(place.dtype).reshape(place.shape))
            used += size
        return views

    def moved_bytes(self, page: ExpertPage) -> int:
        return page.file_bytes


class Throttle:
    """Delays work to a number of bytes a second over all threads: a modelled link, to be named as such."""

    def __init__(self, bytes_per_s: float):
        if not bytes_per_s > 0:
            raise ValueError(f"a throttle of {bytes_per_s} bytes a second; it must be above 0")
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._lock = threading.Lock()

    def take(self, size: int, since_s: float | None = None) -> None:
        """Returns once `size` more bytes may have passed; those that began at monotonic `since_s`."""
        with self._lock:
            start = max(self._free_s, time.monotonic() if since_s is None else since_s)
            self._free_s = start + size / self._bytes_per_s
            until = self._free_s
        time.sleep(max(0.0, until - time.monotonic()))


class MemoryPages:
    """Pages from host memory, read from the files once, and handed out no faster than a throttle allows."""

    def __init__(self, source: PageSource, pages: Sequence[ExpertPage], throttle: Throttle | None = None):
        self._throttle = throttle
        self._held: dict[ExpertPage, list[np.ndarray]] = {}
        buffer = aligned_buffer(max((page.buffer_bytes for page in pages), default=0))
        for page in pages:
            self._held[page] = [view.copy() for view in source.read_page(page, buffer)]

    def read_page(self, page: ExpertPage, buffer: np.ndarray) -> list[np.ndarray]:
        """Copies the page into `buffer`.

        Raises:
          ValueError: the buffer is too small.
        """
        since_s = time.monotonic()
        views = packed(self._held[page], buffer)
        if self._throttle is not None:
            self._throttle.take(self.moved_bytes(page), since_s)
        return views

    def moved_bytes(self, page: ExpertPage) -> int:
        return sum(matrix.nbytes for matrix in self._held[page])


def packed(matrices: Sequence[np.ndarray], buffer: np.ndarray) -> list[np.ndarray]:
    """Copies of the matrices in `buffer`, each at a multiple of a line.

    Raises:
      ValueError: the buffer is too small.
    """
    need = sum(-(-matrix.nbytes // LINE) * LINE for matrix in matrices)
    if len(buffer) < need:
        raise ValueError(f"a buffer of {len(buffer)} bytes for a page of {need}")
    views, used = [], 0
    for matrix in matrices:
        view = buffer[used : used + matrix.nbytes].view(matrix.dtype).reshape(matrix.shape)
        np.copyto(view, matrix)
        views.append(view)
        used += -(-matrix.nbytes // LINE) * LINE
    return views


class ThrottledPages:
    """Pages of another source, no faster than a throttle allows: a modelled link, to be named as such."""

    def __init__(self, source: PageSource, throttle: Throttle):
        self._source, self._throttle = source, throttle

    def read_page(self, page: ExpertPage, buffer: np.ndarray) -> list[np.ndarray]:
        since_s = time.monotonic()
        views = self._source.read_page(page, buffer)
        self._throttle.take(self.moved_bytes(page), since_s)
        return views

    def moved_bytes(self, page: ExpertPage) -> int:
        return self._source.moved_bytes(page)


class PackedPages:
    """Pages of another source copied to where programs can use them in place; one thread at a time.

    For checkpoints whose matrices lie at odd offsets. Costs one page of staging and a copy.
    """

    def __init__(self, source: PageSource, page_bytes: int):
        self._source, self._staging = source, aligned_buffer(page_bytes)

    def read_page(self, page: ExpertPage, buffer: np.ndarray) -> list[np.ndarray]:
        return packed(self._source.read_page(page, self._staging), buffer)

    def moved_bytes(self, page: ExpertPage) -> int:
        return self._source.moved_bytes(page)
