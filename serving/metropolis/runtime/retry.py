"""Retries, deadlines and a concurrency limit for model calls.

A retry repeats the same call with the same seed, so it does not change the answer an agent gets.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heappop, heappush

from mixattn.evals.llm import CallFailed, Completion


@dataclass(unsafe_hash=True, kw_only=True)
class RetryPolicy:
    """Deadline and retries of a model call.

    Attributes:
      timeout_s: of one attempt; 0 means no deadline.
      max_retries: attempts after the first.
      backoff_s: pause before the first retry; it doubles with each retry.
    """

    timeout_s: float = 0.0
    max_retries: int = 3
    backoff_s: float = 0.5

    def check(self) -> None:
        for name in ("timeout_s", "max_retries", "backoff_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"retry_policy.{name} is {getattr(self, name)}; it must not be negative")


async def call_with_retries(
    attempt: Callable[[], Awaitable[Completion]], policy: RetryPolicy
) -> tuple[Completion, int]:
    """Returns the completion and the number of retries it took.

    Raises:
      CallFailed: the last failure, or the first one that is not transient.
    """
    for retry in range(policy.max_retries + 1):
        try:
            if not policy.timeout_s:
                return await attempt(), retry
            async with asyncio.timeout(policy.timeout_s):
                return await attempt(), retry
        except TimeoutError:
            error = CallFailed(f"no answer within {policy.timeout_s} s", transient=True)
        except CallFailed as failure:
            error = failure
        if not error.transient or retry == policy.max_retries:
            raise CallFailed(f"{error} (attempt {retry + 1} of {policy.max_retries + 1})", transient=False)
        await asyncio.sleep(policy.backoff_s * 2**retry)
    raise AssertionError("unreachable")


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
