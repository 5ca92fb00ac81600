"""Written means on disk: one flush for everybody who waits, in a thread, so that no page waits for it."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

type Waiting = list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]


class DurableWrites:
    """Waits until the disk has everything written before the call; several callers share a flush."""

    def __init__(self, flush: Callable[[], None]):
        self._flush, self._thread = flush, ThreadPoolExecutor(1, "flush")
        self._lock, self._running = threading.Lock(), False
        self._waiting: Waiting = []

    async def wait(self) -> None:
        """Returns once a flush that began after this call has ended.

        Raises:
          OSError: the disk refuses.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._waiting.append((loop, future))
            if not self._running:
                self._running = True
                self._thread.submit(self._run)
        await future

    def _run(self) -> None:
        while True:
            with self._lock:
                batch, self._waiting = self._waiting, []
                if not batch:
                    self._running = False
                    return
            why: Exception | None = None
            try:
                self._flush()
            except Exception as refused:
                why = refused
            batch[0][0].call_soon_threadsafe(_tell, batch, why)


def _tell(batch: Waiting, why: Exception | None) -> None:
    for _, future in batch:
        if not future.done():  # its caller may have left
            future.set_exception(why) if why else future.set_result(None)
