"""Deadlines of live requests."""

import heapq
import itertools
from collections.abc import Iterator, Mapping

from serving.engine.output import OutputStream
from serving.request import RequestId

SLACK = 64  # dead entries that are tolerated beside as many as are live


class Deadlines:
    """Deadlines of live requests, soonest first.

    Args:
      streams: the live requests; their owner changes them. Entries of others are cleared away.
    """

    def __init__(self, streams: Mapping[RequestId, OutputStream]):
        self._streams = streams
        self._heap: list[tuple[float, int, OutputStream]] = []
        self._ties = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at_s: float, stream: OutputStream) -> None:
        heapq.heappush(self._heap, (at_s, next(self._ties), stream))
        if len(self._heap) > 2 * len(self._streams) + SLACK:
            self._heap = [due for due in self._heap if self._is_live(due[2])]
            heapq.heapify(self._heap)

    def passed(self, now_s: float) -> Iterator[RequestId]:
        """Takes out and names the live requests whose deadline has passed."""
        while self._heap and self._heap[0][0] <= now_s:
            stream = heapq.heappop(self._heap)[2]
            if self._is_live(stream):
                yield stream.id

    def _is_live(self, stream: OutputStream) -> bool:
        return self._streams.get(stream.id) is stream  # not a later request of the same id
