"""A worker process behind an ingress: the HTTP server on a unix socket, with two routes more.

  * `GET /cluster/events` begins a session: a stream of lines that ends when either side goes.
  * `POST /cluster/commands?session=NUMBER` carries commands for it.

Started by `serving.cluster.http_worker` only. Its first line of input says what to serve; when its input
ends, the ingress is gone, and so is the worker.
"""

import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from absl import logging
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mixattn.tools import cli
from serving.cluster.session import WorkerSession
from serving.http import command, process
from serving.http.backend import StepReport
from serving.http.errors import ApiError
from serving.http.loop import EngineLoop
from serving.http.options import StartOptions
from serving.http.service import Service
from serving.http.settings import HttpLimits

BODY_BYTES = 256 << 20  # of commands: the ingress has checked what is in them
LONG_S = 3e7  # its connections stay open, whether or not it has anything to say
PR_SET_PDEATHSIG = 1


class WorkerRoutes:
    """See the module. One session at a time; a later one ends the earlier."""

    def __init__(self, service: Service, beat_s: float) -> None:
        self._service, self._beat_s = service, beat_s
        self._numbers = itertools.count(1)
        self.session: WorkerSession | None = None
        service.taps.append(self._report)

    def routes(self) -> list[Route]:
        return [
            Route("/cluster/events", self.events, methods=["GET"]),
            Route("/cluster/commands", self.commands, methods=["POST"]),
        ]

    async def events(self, request: Request) -> Response:
        model = self._service.ready_model()
        self._end(self.session)
        loop, grammars = self._service.loop, model.grammars
        assert isinstance(loop, EngineLoop)
        compile = None if grammars is None else grammars.compile
        session = WorkerSession(next(self._numbers), loop, compile, beat_s=self._beat_s)
        self.session = session
        return StreamingResponse(self._lines(session), media_type="application/x-ndjson")

    async def _lines(self, session: WorkerSession) -> AsyncIterator[bytes]:
        try:
            async for lines in session.lines():
                yield lines
        finally:
            self._end(session)

    async def commands(self, request: Request) -> Response:
        session = self.session
        if session is None or request.query_params.get("session") != str(session.number):
            raise ApiError(409, "this session is over", code="session_over")
        session.take(await request.body())
        return Response(status_code=204)

    def _report(self, report: StepReport) -> None:
        if self.session is not None:
            self.session.report(report)

    def _end(self, session: WorkerSession | None) -> None:
        if session is not None and not session.closed:
            session.close()
        if session is self.session:
            self.session = None


def main() -> None:
    _die_with_parent()
    told = json.loads(sys.stdin.buffer.readline() or b"{}")
    if "options" not in told:
        raise ValueError("this command is started by serving.cluster; run python -m serving.cluster --help")
    threading.Thread(target=_end_with_input, daemon=True).start()
    command.split_overrides(told["overrides"])
    if told["cores"]:
        os.sched_setaffinity(0, told["cores"])
    limits = HttpLimits(
        body_bytes=BODY_BYTES,
        header_s=LONG_S,
        body_s=LONG_S,
        keep_alive_s=LONG_S,
        stall_s=120.0,
        watchdog_s=told["watchdog_s"],
    )

    def more(service: Service) -> list[Route]:
        return WorkerRoutes(service, told["beat_s"]).routes()

    def assemble(
        options: StartOptions, limits: HttpLimits, override: process.Override
    ) -> process.SingleEngine:
        return process.SingleEngine(options, limits, override, more)

    with listen_at(Path(told["socket"])) as made:
        door = process.Door(socket=made, host="localhost", keys=None, limits=limits)
        sys.exit(process.run(options_of(told["options"]), door, command.overridden, assemble))


def listen_at(path: Path) -> socket.socket:
    """A listening unix socket, which only this user can reach."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    path.chmod(0o600)
    made.listen(64)
    return made


def options_of(told: dict[str, Any]) -> StartOptions:
    """Start options that were written as JSON."""
    paths = {name: told[name] and Path(told[name]) for name in ("checkpoint", "chat_template")}
    return StartOptions(**{**told, **paths})


def _die_with_parent() -> None:
    """On Linux also while this process is stopped, when it cannot notice that its input has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_with_input() -> None:
    while sys.stdin.buffer.read(1 << 16):
        pass
    os._exit(0)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    cli.run(main, [sys.argv[0]])
