"""A worker as an actor of a Ray cluster, perhaps on another machine. Needs the extra `cluster`.

A plain actor: Ray places it, gives it its resources and notices its end; who gets what is decided here. Only
bytes and numbers travel. The cluster is that of the environment's RAY_ADDRESS, or one on this machine that is
started with the ingress and ends with it. Its authentication is left as it is.
"""

import asyncio
import dataclasses
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from serving.cluster.messages import LineSplitter
from serving.cluster.session import WorkerSession
from serving.cluster.worker import options_of
from serving.cluster.workers import NotReady
from serving.http import command, process
from serving.http.backend import StepReport
from serving.http.loop import EngineLoop
from serving.http.metrics import ServerMetrics
from serving.http.options import StartOptions
from serving.http.service import Service
from serving.http.settings import HttpLimits

CALLS = 16  # of an actor at once: its stream, and commands


class EngineActor:
    """An engine and its session; the methods are called by Ray.

    Args:
      told: as JSON: the options, overrides and times of `HttpWorker`.
    """

    def __init__(self, told: str) -> None:
        given = json.loads(told)
        command.split_overrides(given["overrides"])
        options, limits = options_of(given["options"]), HttpLimits()
        self._beat_s = given["beat_s"]
        self._assembly = process.SingleEngine(options, limits, command.overridden)
        self._service = Service(limits, ServerMetrics(options.name), None, self._assembly.backend)
        self._service.taps.append(self._report)
        self._numbers = itertools.count(1)
        self._session: WorkerSession | None = None

    async def start(self) -> None:
        """Loads and compiles."""
        await self._assembly.start(self._service)

    async def events(self) -> AsyncIterator[bytes]:
        """The lines of a new session."""
        self._end()
        model, loop = self._service.ready_model(), self._service.loop
        assert isinstance(loop, EngineLoop)
        compile = None if model.grammars is None else model.grammars.compile
        session = self._session = WorkerSession(next(self._numbers), loop, compile, beat_s=self._beat_s)
        async for lines in session.lines():
            yield lines

    async def commands(self, session: int, lines: bytes) -> None:
        """Commands of a session; those of one that is over are dropped."""
        if self._session is not None and self._session.number == session:
            self._session.take(lines)

    async def end_session(self, session: int) -> None:
        if self._session is not None and self._session.number == session:
            self._end()

    def _end(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _report(self, report: StepReport) -> None:
        if self._session is not None:
            self._session.report(report)


class RayCluster:
    """Connects to a Ray cluster, or starts one here; makes its workers."""

    def __init__(self, options: StartOptions, overrides: Sequence[str], *, beat_s: float) -> None:
        told = {"options": dataclasses.asdict(options), "overrides": list(overrides), "beat_s": beat_s}
        self._told = json.dumps(told, default=str)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ["NPROC"] = "1"  # of the actors, where Ray is started here
        here = not os.environ.get("RAY_ADDRESS")
        ray.init(log_to_driver=False, **({"include_dashboard": False, "num_cpus": 1} if here else {}))
        # On this machine workers share what cores there are; elsewhere each has one of Ray's.
        self._actor = ray.remote(EngineActor).options(max_concurrency=CALLS, num_cpus=0 if here else 1)

    def worker(self, place: int) -> "RayWorker":
        return RayWorker(self._actor, self._told)


class RayWorker:
    """See `serving.cluster.workers.WorkerHandle`."""

    def __init__(self, actor_class: Any, told: str) -> None:
        self._class, self._told = actor_class, told
        self._actor: Any = None
        self._starting: asyncio.Future[Any] | None = None
        self._why: str | None = None
        self._reading: asyncio.Task[None] | None = None
        self._session = 0

    def start(self) -> None:
        self._why = None
        self._actor = self._class.remote(self._told)
        self._starting = asyncio.ensure_future(_result(self._actor.start.remote()))

    def ended(self) -> str | None:
        starting = self._starting
        if starting is None or not starting.done() or starting.cancelled():
            return self._why
        why = starting.exception()
        return self._why if why is None else _told(why)

    async def attach(self, on_line: Callable[[bytes], None], on_end: Callable[[str], None]) -> None:
        if self._starting is None or not self._starting.done() or self.ended() is not None:
            raise NotReady(self.ended() or "it is starting")
        stream = self._actor.events.options(num_returns="streaming").remote()
        splitter, greeted = LineSplitter(), asyncio.Event()

        async def read() -> None:
            try:
                async for piece in stream:
                    for line in splitter.feed(await piece):
                        if not greeted.is_set() and line.startswith(b'{"hello"'):
                            self._session = json.loads(line)["hello"]["session"]
                            greeted.set()
                        on_line(line)
                on_end("its stream ended")
            except RayError as why:
                if isinstance(why, ray.exceptions.RayActorError):
                    self._why = _told(why)
                on_end(_told(why))

        self._reading = asyncio.get_running_loop().create_task(read())
        waiting = asyncio.ensure_future(greeted.wait())
        try:
            await asyncio.wait({waiting, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not greeted.is_set():
            raise NotReady(self._why or "its stream ended")

    def send(self, lines: Sequence[bytes]) -> None:
        self._actor.commands.remote(self._session, b"".join(lines))

    def detach(self) -> None:
        if self._reading is not None and self._reading is not asyncio.current_task():
            self._reading.cancel()
        if self._reading is not None and self._why is None:
            self._actor.end_session.remote(self._session)
        self._reading = None

    async def stop(self) -> None:
        self.detach()
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


async def _result(reference: Any) -> None:
    await reference


def _told(why: BaseException) -> str:
    lines = str(why).strip().splitlines()
    return lines[-1][:300] if lines else type(why).__name__
