"""An asyncio event loop in virtual time: it never sleeps but advances its clock to the next scheduled event.

Everything asyncio offers (sleep, timeouts, futures, cancellation) works unchanged. A simulated hour costs
only the handling of its events. Runs are repeatable: callbacks due at the same time run in the order they
were scheduled.
"""

import asyncio
import selectors
from collections.abc import Coroutine


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and advances only when no callback is ready."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_VirtualSelector(self))

    def time(self) -> float:
        return self.now_s


class _VirtualSelector(selectors.DefaultSelector):
    """Advances the loop's clock by the timeout instead of waiting for it."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError(
                f"deadlock at {self._loop.now_s} s: tasks are waiting, but no event is scheduled"
            )
        self._loop.now_s += timeout
        return ready


def run_virtual[T](main: Coroutine[None, None, T]) -> T:
    """Runs `main` to completion in virtual time.

    Raises:
      RuntimeError: every task waits and no event is scheduled.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
