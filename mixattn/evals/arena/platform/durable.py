"""Written means on disk: one flush for everybody who waits, in a thread, so that no page waits for it."""

import asyncio
from collections.abc import Callable


class DurableWrites:
    """Waits until the disk has everything written before the call; several callers share a flush."""

    def __init__(self, flush: Callable[[], None]):
        self._flush, self._lock = flush, asyncio.Lock()
        self._asked = self._flushed = 0

    async def wait(self) -> None:
        """Returns once a flush that began after this call has ended.

        Raises:
          OSError: the disk refuses.
        """
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._flushed < mine:
                covers = self._asked
                await asyncio.to_thread(self._flush)
                self._flushed = covers
