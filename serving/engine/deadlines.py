"""Which requests must end when."""

import heapq
import itertools
from collections.abc import Iterator, Mapping

from serving.engine.output import OutputStream
from serving.request import RequestId

SLACK = 64  # of those that ended there may be so many and as many as are live


class Deadlines:
    """Deadlines of live requests, soonest first.

    Args:
      streams: the live requests, changed by whoever owns them. Who is not in it any more is cleared away.
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
        """Takes out and names the live requests whose time has come."""
        while self._heap and self._heap[0][0] <= now_s:
            stream = heapq.heappop(self._heap)[2]
            if self._is_live(stream):
                yield stream.id

    def _is_live(self, stream: OutputStream) -> bool:
        return self._streams.get(stream.id) is stream  # not a later request of the same id
