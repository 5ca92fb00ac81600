"""Experts in 8 bits, rounded as they are read: memory holds four times as many as of float32.

    codes[f] = round(w[f] / scale[f]),  scale[f] = max |w[f]| / 127        (one scale per output channel)

What is read from a file stays as it is; what host memory hands out are the codes. Rows are rounded when they
meet an expert. The arithmetic is that of `pallas_kernels.int8`, in numpy and for a block of channels at a
time, so that it takes no memory to speak of.
"""

from collections.abc import Sequence

import numpy as np

from serving.offload.store import LINE, ExpertPage, PageSource, aligned_buffer, packed

LIMIT = 127
LEAST = 1e-30  # as in `pallas_kernels.int8`: smaller values are zeros
CHANNELS = 64  # rounded at a time


def rounded(w_FD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes_FD and float32 scale_F of a matrix with one output channel a row."""
    codes_FD, scale_F = np.empty(w_FD.shape, np.int8), np.empty(len(w_FD), np.float32)
    for start in range(0, len(w_FD), CHANNELS):
        block = slice(start, start + CHANNELS)
        w = w_FD[block].astype(np.float32)
        top = np.abs(w).max(axis=1)
        scale_F[block] = np.where(top < LEAST, np.float32(1), top * np.float32(1 / LIMIT))
        w *= (np.float32(1) / scale_F[block])[:, None]
        codes_FD[block] = np.rint(w, out=w)
    return codes_FD, scale_F


def rounded_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes of a slot for matrices of these shapes [channels, width], each array at a multiple of a line."""
    return sum(
        -(-size // LINE) * LINE for channels, width in shapes for size in (channels * width, channels * 4)
    )


class RoundedPages:
    """Pages of another source in 8 bits: codes and scales of each matrix in turn; one thread at a time.

    Args:
      page_bytes: of a page as the source has it.
      transposed: whether the source has [channels, width], and not [width, channels].
    """

    def __init__(self, source: PageSource, page_bytes: int, *, transposed: bool):
        self._source, self._staging, self._transposed = source, aligned_buffer(page_bytes), transposed

    def read_page(self, page: ExpertPage, buffer: np.ndarray) -> list[np.ndarray]:
        """Fills `buffer`.

        Raises:
          ValueError, OSError: as the other source.
        """
        matrices = self._source.read_page(page, self._staging)
        pairs = [rounded(w if self._transposed else w.T) for w in matrices]
        return packed([array for pair in pairs for array in pair], buffer)

    def moved_bytes(self, page: ExpertPage) -> int:
        return self._source.moved_bytes(page)
