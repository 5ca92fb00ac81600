"""A worker as a process of this machine, reached by HTTP over a unix socket."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import httptools

from serving.cluster.messages import LineSplitter
from serving.cluster.workers import NotReady
from serving.http.options import StartOptions

BATCH_BYTES = 1 << 20  # of commands in one request
STOP_S = 5.0  # for a killed process to be gone


class WorkerConnection(asyncio.Protocol):
    """One keep-alive connection to a worker. Its callbacks are asyncio's and the parser's."""

    def __init__(self, on_body: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None:
        self._on_body, self._on_lost = on_body, on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[int] | None = None
        self._whole: asyncio.Future[None] | None = None

    @classmethod
    async def open(
        cls, path: Path, on_body: Callable[[bytes], None], on_lost: Callable[[str], None]
    ) -> "WorkerConnection":
        """Raises OSError."""
        events = asyncio.get_running_loop()
        _, made = await events.create_unix_connection(lambda: cls(on_body, on_lost), str(path))
        return made

    async def ask(self, method: str, target: str, body: bytes = b"") -> int:
        """Sends a request; returns the status once the head of its answer is there.

        Raises:
          ConnectionError: the connection ended before.
        """
        assert self._transport is not None
        events = asyncio.get_running_loop()
        self._head, self._whole = events.create_future(), events.create_future()
        self._whole.add_done_callback(_seen)
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        return await self._head

    async def whole(self) -> None:
        """Waits for the end of the answer. Raises ConnectionError."""
        assert self._whole is not None
        await self._whole

    def close(self) -> None:
        self._on_lost = _ignore
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as why:
            self._fail(f"it does not speak HTTP: {why}")
            self.close()

    def connection_lost(self, why: Exception | None) -> None:
        self._fail("its connection broke")

    def _fail(self, why: str) -> None:
        for waiting in (self._head, self._whole):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionError(why))
        self._on_lost(why)

    # ---- httptools ----

    def on_headers_complete(self) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_result(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self._on_body(body)

    def on_message_complete(self) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_result(None)


class HttpWorker:
    """See `serving.cluster.workers.WorkerHandle`.

    Args:
      place: which of the cluster's workers.
      folder: private to this user; socket and log go there.
      overrides: words like --engine.FIELD=VALUE.
      cores: CPU cores it keeps to; none = any.
    """

    def __init__(
        self,
        place: int,
        folder: Path,
        options: StartOptions,
        overrides: Sequence[str],
        *,
        beat_s: float,
        step_s: float,
        cores: Sequence[int] = (),
    ) -> None:
        self._socket, self.log = folder / f"worker-{place}.sock", folder / f"worker-{place}.log"
        self._setup = {
            "options": dataclasses.asdict(options),
            "overrides": list(overrides),
            "socket": str(self._socket),
            "beat_s": beat_s,
            "watchdog_s": step_s,
            "cores": list(cores),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._events: WorkerConnection | None = None
        self._commands: WorkerConnection | None = None
        self._queue: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._on_end: Callable[[str], None] = _ignore
        self._session = 0

    def start(self) -> None:
        setup = json.dumps(self._setup, default=str).encode() + b"\n"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving.cluster.worker"],
                env={**os.environ, "NPROC": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                process_group=0,  # Ctrl-C is for the ingress, which lets its workers end
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(setup)
            self.process.stdin.flush()

    def ended(self) -> str | None:
        if self.process is None:
            return "it was not started"
        status = self.process.poll()
        if status is None:
            return None
        if status < 0:
            return f"it was ended by {signal.Signals(-status).name}"
        return f"it ended with status {status}: {self._last_words()}"

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ")[:300] if lines else "it said nothing"

    async def attach(self, on_line: Callable[[bytes], None], on_end: Callable[[str], None]) -> None:
        splitter = LineSplitter()
        greeted = asyncio.Event()

        def on_body(piece: bytes) -> None:
            for line in splitter.feed(piece):
                if not greeted.is_set() and line.startswith(b'{"hello"'):
                    self._session = json.loads(line)["hello"]["session"]
                    greeted.set()
                on_line(line)

        lost: list[str] = []
        try:
            self._commands = await WorkerConnection.open(self._socket, _ignore, lost.append)
            self._events = await WorkerConnection.open(self._socket, on_body, lost.append)
            if (status := await self._events.ask("GET", "/cluster/events")) != 200:
                raise NotReady(f"it answered {status}")
            await greeted.wait()
        except OSError as why:
            raise NotReady(str(why)) from None
        if lost:
            raise NotReady(lost[0])
        self._on_end = on_end
        self._events._on_lost = self._commands._on_lost = self._end

    def send(self, lines: Sequence[bytes]) -> None:
        self._queue.extend(lines)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        """One request after the other, so that commands arrive in order."""
        while self._queue and self._commands is not None:
            batch: list[bytes] = []
            size = 0
            while self._queue and (not batch or size + len(self._queue[0]) <= BATCH_BYTES):
                batch.append(self._queue.popleft())
                size += len(batch[-1])
            try:
                target = f"/cluster/commands?session={self._session}"
                status = await self._commands.ask("POST", target, b"".join(batch))
                await self._commands.whole()
            except ConnectionError:
                return  # `_end` has been told
            if status != 204:
                self._end(f"it answered {status} to a command")
                return

    def _end(self, why: str) -> None:
        on_end, self._on_end = self._on_end, _ignore
        on_end(why)

    def detach(self) -> None:
        self._on_end = _ignore
        self._queue.clear()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        for connection in (self._events, self._commands):
            if connection is not None:
                connection.close()
        self._events = self._commands = None

    async def stop(self) -> None:
        self.detach()
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            for _ in range(round(STOP_S / 0.01)):
                if process.poll() is not None:
                    break
                await asyncio.sleep(0.01)
        self._socket.unlink(missing_ok=True)


def _ignore(*_: Any) -> None:
    pass


def _seen(done: "asyncio.Future[None]") -> None:
    """A failure that nobody waits for is no error of its own."""
    if not done.cancelled():
        done.exception()
