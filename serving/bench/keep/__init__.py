"""Eviction beside the full cache: decode, prefill, settling, hits, memory, and requests at once.

8 layers of width 256 with 8 / 4 heads of 32 and a vocabulary of 32k, 32 rows, slabs of 20 % of the context.
Decode steps run on states that are made up: random keys, every row at the same length. The floor of a step
is one with a context of a page, which is attention for nothing.
"""

from collections.abc import Iterable

from serving.bench import Row, Size
from serving.bench.keep.at_once import at_once
from serving.bench.keep.decode import decoding, short
from serving.bench.keep.prefill import hits, peak, prefilling

GOALS = {2048: ">= 1.8", 4096: ">= 2.3"}


def keep(size: Size) -> Iterable[Row]:
    """All figures, each as soon as it is known."""
    for context, goal in GOALS.items():
        yield from decoding(context, goal, 3 * size.repeats)
    yield from short(size.repeats * 4)
    yield from prefilling(3 * size.repeats)
    yield from hits(2 * size.repeats)
    yield from peak()
    yield from at_once()
