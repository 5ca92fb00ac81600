"""The process: sockets, signals, drain. uvicorn's server, except that a clean drain ends with status 0."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Generator
from typing import Any

import uvicorn
from absl import logging

from serving.http.errors import ApiError
from serving.http.protocol import guarded
from serving.http.service import Service

TICK_S = 0.5  # of the housekeeping


class DrainingServer(uvicorn.Server):
    """Serves an application until a signal; the first drains, the second ends at once.

    Attributes:
      status: exit status of the process.
    """

    def __init__(self, app: Any, service: Service) -> None:
        limits = service.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=guarded(limits, service.metrics.reject),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_keep_alive=round(limits.keep_alive_s),
                timeout_graceful_shutdown=2,
                backlog=2048,
            )
        )
        self.status = 0
        self._service = service
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Our handlers instead of uvicorn's, which raises the signal again after a clean end."""
        events = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            events.add_signal_handler(number, self._on_signal, number)
        self._tasks.append(events.create_task(self._housekeeping()))
        yield
        for task in self._tasks:
            task.cancel()

    def stop(self, status: int) -> None:
        """Ends the server; what is still open gets an error."""
        self.status = self.status or status
        self._service.fail_everything(
            ApiError(503, "the server is shutting down", code="shutting_down", retry_after_s=10)
        )
        self.should_exit = True

    def _on_signal(self, number: int) -> None:
        if self._service.draining:
            self.force_exit = True
            self.stop(1)
            return
        self._service.draining = True
        self._tasks.append(asyncio.get_running_loop().create_task(self._drain()))

    async def _drain(self) -> None:
        """Lets running and queued calls end, within the limit."""
        deadline_s = time.monotonic() + self._service.limits.drain_s
        while self._service.busy and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        self.stop(0)

    async def _housekeeping(self) -> None:
        """Drops connections that nobody reads, which cancels their calls, and names a stuck step once."""
        events = asyncio.get_running_loop()
        limit_s, told = self._service.limits.stall_s, False
        while True:
            await asyncio.sleep(TICK_S)
            for connection in list(self.server_state.connections):
                since_s = getattr(connection, "unread_since_s", None)
                if since_s is not None and events.time() - since_s > limit_s:
                    logging.warning("dropped a connection whose reader took nothing for %g s", limit_s)
                    connection.transport.abort()
            why = self._service.unhealthy
            if why and not told:
                live = list(self._service.calls)[:20]
                logging.error("unhealthy: %s; live requests: %s", why, live)
            told = bool(why)
