"""An asyncio loop whose time is virtual: it never sleeps, it jumps to the next thing that will happen.

Everything asyncio offers (sleep, timeouts, futures, cancellation) works unchanged and a simulated hour costs
only its events. Runs are repeatable: callbacks due at the same instant run in the order they were scheduled.
"""

import asyncio
import selectors
from collections.abc import Coroutine


class VirtualLoop(asyncio.SelectorEventLoop):
    """`loop.time()` starts at 0 and moves only when nothing is ready to run."""

    def __init__(self):
        self.now_s = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now_s


class _Jump(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop):
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError(f"nothing is left to happen at {self._loop.now_s} s, yet someone waits")
        self._loop.now_s += timeout
        return ready


def run_virtual[T](main: Coroutine[None, None, T]) -> T:
    """Runs `main` to its end in virtual time; raises RuntimeError if everyone waits for nothing."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
