"""The way to a language model: a cap on calls in flight, deadlines, retries, and a count of who waits.

A retry repeats the same call (same seed, same index), so it cannot change what the agent hears.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heappop, heappush

from mixattn.evals.llm import CallFailed, Completion


@dataclass(unsafe_hash=True, kw_only=True)
class RetryPolicy:
    """How long to wait for a model, and how often to ask again.

    Attributes:
      timeout_s: of one attempt; 0 waits for ever.
      retries: attempts after the first.
      backoff_s: pause before the first retry; it doubles each time.
    """

    timeout_s: float = 0.0
    retries: int = 3
    backoff_s: float = 0.5

    def check(self) -> None:
        for name in ("timeout_s", "retries", "backoff_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"patience.{name} is {getattr(self, name)}; it must not be negative")


async def persist(
    attempt: Callable[[], Awaitable[Completion]], patience: RetryPolicy
) -> tuple[Completion, int]:
    """The completion and the number of retries it took.

    Raises:
      CallFailed: the last failure, or at once one that trying again cannot mend.
    """
    for retry in range(patience.retries + 1):
        try:
            if not patience.timeout_s:
                return await attempt(), retry
            async with asyncio.timeout(patience.timeout_s):
                return await attempt(), retry
        except TimeoutError:
            why = CallFailed(f"no answer within {patience.timeout_s} s", transient=True)
        except CallFailed as failure:
            why = failure
        if not why.transient or retry == patience.retries:
            raise CallFailed(f"{why} (attempt {retry + 1} of {patience.retries + 1})", transient=False)
        await asyncio.sleep(patience.backoff_s * 2**retry)
    raise AssertionError("unreachable")


class Gate:
    """At most `slots` inside at a time; of those waiting, the smallest priority first, then the oldest."""

    def __init__(self, slots: int):
        if slots < 1:
            raise ValueError(f"slots is {slots}; a gate needs at least one")
        self._free, self._count = slots, 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def enter(self, priority: int = 0) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            await self._wait(priority)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, priority: int) -> None:

        turn = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (priority, self._count, turn))
        self._count += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot was already ours: hand it on
                self._pass_on()
            raise

    def _pass_on(self) -> None:

        while self._waiting:
            turn = heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
