"""The engine's thread: commands in, reports out, one wake-up of the event loop per step.

The engine is touched by this thread alone. Commands wait in a deque that is drained between steps.
"""

import asyncio
import dataclasses
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

from serving.engine.stats import EngineStats
from serving.fair.ledger import SCALE
from serving.http.backend import Deliver, StepReport
from serving.request import ClientId, Request, RequestId

if TYPE_CHECKING:
    from serving.engine.engine import Engine  # loads jax, which a server in front of workers does without

MAX_RESETS, RESETS_WITHIN_S = 3, 60.0  # more failures of whole steps than this: unhealthy


class EngineLoop:
    """Runs an engine in a thread.

    Args:
      deliver: called on the event loop with the report of each step that brought anything.
    """

    failed_code, retry_s = "unhealthy", 60.0

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._inbox: deque[Callable[[Engine], None]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._report = StepReport(0.0)
        self._resets: deque[float] = deque(maxlen=MAX_RESETS)
        self.failed: str | None = None  # why it can serve no longer
        self.step_began_s: float | None = None  # of the step that runs; None between steps
        self.listeners: list[Callable[[dict[str, Any]], None]] = []  # of the engine's events, in its thread

    def start(self, engine: "Engine", events: asyncio.AbstractEventLoop) -> None:
        self.engine, self._events = engine, events
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def record(self, event: dict[str, Any]) -> None:
        """The engine's `log`."""
        if event["event"] == "admit":
            self._report.admitted.append((event["id"], event["extend"], event["hit"]))
        for listener in self.listeners:
            listener(event)

    # ---- from the event loop ----

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues the requests of one call, all or none."""

        def command(engine: "Engine") -> None:
            taken: list[RequestId] = []
            try:
                for request in requests:
                    taken.append(engine.submit(request))
            except ValueError as why:
                for id in taken:
                    engine.cancel(id)
                self._report.refused += [(request.id, str(why)) for request in requests]

        self._tell(command)

    def cancel(self, ids: Sequence[RequestId]) -> None:
        self._tell(lambda engine: [engine.cancel(id) for id in ids])

    def check(self, request: Request) -> None:
        """Raises ValueError if `request` can never be served."""
        self.engine.check(request)

    async def stats(self) -> EngineStats:
        return await self.ask(lambda engine: engine.stats())

    async def served(self) -> Mapping[ClientId, int]:
        """Service of each client by the policy's account, in weighted tokens."""
        return await self.ask(_served_tok)

    async def flush(self) -> bool:
        """Empties the prefix cache; False while requests run."""
        return await self.ask(_flushed)

    def described(self) -> dict[str, Any]:
        return dataclasses.asdict(self.engine.config)

    def ask[T](self, question: Callable[["Engine"], T]) -> asyncio.Future[T]:
        """Runs `question` between two steps; awaits its answer."""
        answer: asyncio.Future[T] = self._events.create_future()

        def give(set_it: Callable[[Any], None], value: Any) -> None:
            if not answer.done():
                set_it(value)

        def command(engine: "Engine") -> None:
            try:
                value = question(engine)
            except Exception as why:
                self._events.call_soon_threadsafe(give, answer.set_exception, why)
            else:
                self._events.call_soon_threadsafe(give, answer.set_result, value)

        self._tell(command)
        return answer

    def stop(self, *, wait: bool = True) -> None:
        """Ends the thread after the running step; live requests stay where they are."""
        self._stopping = True
        self._wake.set()
        if wait and hasattr(self, "_thread"):
            self._thread.join(timeout=10)

    def stuck_s(self) -> float:
        """Seconds that the running step has taken; 0 between steps."""
        began_s = self.step_began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    # ---- in the thread ----

    def _tell(self, command: Callable[["Engine"], Any]) -> None:
        self._inbox.append(command)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._stopping:  # asked after the clear: a stop that comes later sets the wake-up again
                return
            self.step_began_s = time.monotonic()
            try:
                for _ in range(len(self._inbox)):
                    self._inbox.popleft()(self.engine)
                if self.engine.live:
                    self._report.deltas = self.engine.step()
            except Exception as why:
                self._recover(why)
            self._send()
            self.step_began_s = None
            if not self.engine.live and not self._inbox:
                self._wake.wait()

    def _send(self) -> None:
        report = self._report
        if report:
            report.at_s = time.monotonic()
            self._report = StepReport(0.0)
            try:
                self._events.call_soon_threadsafe(self._deliver, report)
            except RuntimeError:  # the event loop is closed: the process ends
                self._stopping = True

    def _recover(self, why: Exception) -> None:
        """After an error that the engine did not handle: its live requests fail, and it starts afresh."""
        logging.exception("the engine's step raised, its live requests end: %r", why)
        now_s = time.monotonic()
        self._resets.append(now_s)
        if len(self._resets) == MAX_RESETS and now_s - self._resets[0] < RESETS_WITHIN_S:
            self.failed = f"{MAX_RESETS} steps failed within {RESETS_WITHIN_S:.0f} s, the last with {why!r}"
        try:
            self.engine.fail_all()
            self._report.deltas = list(itertools.chain(self._report.deltas, self.engine.take_done()))
        except Exception as again:
            logging.exception("and could not be restarted: %r", again)
            self.failed = f"the engine failed and could not be restarted: {again!r}"


def _served_tok(engine: "Engine") -> dict[ClientId, int]:
    return {client: amount // SCALE for client, amount in engine.fallback.served().items()}


def _flushed(engine: "Engine") -> bool:
    if engine.live:
        return False
    engine.memory.clear_cache()
    return True
