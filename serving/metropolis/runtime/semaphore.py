"""A concurrency limit for model calls; their retries are `mixattn.evals.llm.call_with_retries`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush


class PrioritySemaphore:
    """A semaphore whose waiters acquire in order of priority, smallest first, then in order of arrival."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; it must be at least 1")
        self._free, self._arrivals = slots, 0
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def slot(self, priority: int = 0) -> AsyncIterator[None]:
        """Holds a slot for the duration of the context."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(priority)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, priority: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        heappush(self._waiters, (priority, self._arrivals, waiter))
        self._arrivals += 1
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # cancelled after the slot was assigned: release it
                self._release()
            raise

    def _release(self) -> None:
        """Assigns the slot to the first live waiter, or frees it."""
        while self._waiters:
            waiter = heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
