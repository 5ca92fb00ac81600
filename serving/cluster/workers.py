"""What the ingress needs of a worker, and the life of one: started, attached, lost, started again.

A `WorkerHandle` is one way to run a worker and talk to it (`http_worker`, `ray_worker`). A `WorkerSlot` keeps
one alive: it attaches to it, notices its loss by a broken stream or by silence, attaches again if it comes
back within `grace_s`, and otherwise ends it and starts another.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from absl import logging

from serving.cluster import messages
from serving.engine.stats import EngineStats
from serving.fair.routers.load_index import WorkerId

type WorkerState = Literal["starting", "up", "draining", "lost", "ended"]

ATTACH_S = 0.1  # between two attempts to reach a worker that starts


class NotReady(Exception):
    """The worker cannot be reached, or not yet."""


class WorkerHandle(Protocol):
    """One process or actor at a time, and the stream of its lines."""

    def start(self) -> None:
        """Begins to start it; what ran before has ended."""
        ...

    def ended(self) -> str | None:
        """Why it does not run; None while it does."""
        ...

    async def attach(self, on_line: Callable[[bytes], None], on_end: Callable[[str], None]) -> None:
        """Begins a session. Raises NotReady."""
        ...

    def send(self, lines: Sequence[bytes]) -> None:
        """Commands of this session; `on_end` is called if they cannot be delivered."""
        ...

    def detach(self) -> None:
        """Ends the session, if there is one. `on_end` is not called any more."""
        ...

    async def stop(self) -> None:
        """Ends it at once, and what it left behind."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerTimes:
    """When a worker counts as lost, and how often it is tried again.

    Attributes:
      heartbeat_s: silence after which it is lost. Workers say something four times as often.
      grace_s: how long a lost one that still runs may come back before it is ended.
      start_s: for a start, at most.
      step_s: a step of its engine that takes longer counts as a loss.
      back_off_s, max_back_off_s: before the first and the later of repeated starts.
    """

    heartbeat_s: float = 2.0
    grace_s: float = 5.0
    start_s: float = 900.0
    step_s: float = 300.0
    back_off_s: float = 0.5
    max_back_off_s: float = 30.0


class SlotEvents(Protocol):
    """Who is told what happens to a worker."""

    def joined(self, slot: "WorkerSlot") -> None: ...

    def line(self, slot: "WorkerSlot", told: messages.Line) -> None: ...

    def lost(self, slot: "WorkerSlot", why: str) -> None: ...


class WorkerSlot:
    """See the module.

    Attributes:
      place: which of the cluster's workers; it keeps this number over restarts.
      number: what the router calls it while it is up; another one each time.
      hello: what it said when the session began; stats: its counters, as last told.
      leaving: it is drained and then let go, not started again.
      why: why it was lost the last time.
      starts, losses: how often it was started, and lost.
    """

    def __init__(self, place: int, handle: WorkerHandle, times: WorkerTimes, events: SlotEvents) -> None:
        self.place, self.handle = place, handle
        self._times, self._events = times, events
        self.state: WorkerState = "starting"
        self.number: WorkerId | None = None
        self.hello: dict[str, Any] = {}
        self.stats: EngineStats | None = None
        self.leaving = False
        self.why = ""
        self.starts = self.losses = 0
        self._heard_s = 0.0
        self._stuck_s = 0.0
        self._gone = asyncio.Event()
        self._pending: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._random = random.Random()

    @property
    def up(self) -> bool:
        return self.state in ("up", "draining")

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def end(self) -> None:
        """Ends the worker for good."""
        self.leaving = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._part("it was let go")
        self.state = "ended"
        await self.handle.stop()

    def send(self, command: bytes) -> None:
        """Queues a command; those of one turn of the event loop travel together."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._send)
        self._pending.append(command)

    def tick(self, now_s: float) -> None:
        """Notices silence, a stuck step, and a process that ended."""
        if not self.up:
            return
        times, silent_s = self._times, now_s - self._heard_s
        if (why := self.handle.ended()) is not None:
            self._part(why)
        elif silent_s > times.heartbeat_s:
            self._part(f"it said nothing for {silent_s:.1f} s")
        elif self._stuck_s > times.step_s:
            self._part(f"a step has taken {self._stuck_s:.0f} s")

    # ---- inside ----

    async def _live(self) -> None:
        failures = 0
        while True:
            began_s = time.monotonic()
            self.state, self.starts = "starting", self.starts + 1
            self.handle.start()
            served = await self._serve()
            await self.handle.stop()
            failures = 0 if served and time.monotonic() - began_s > 60 else failures + 1
            await asyncio.sleep(self._back_off_s(failures))

    async def _serve(self) -> bool:
        """Holds the process until it has to be replaced; whether it ever served."""
        served, limit_s = False, time.monotonic() + self._times.start_s
        while True:
            self._gone.clear()
            try:
                async with asyncio.timeout(self._times.heartbeat_s):
                    await self.handle.attach(self._line, self._part)
            except (NotReady, TimeoutError) as why_not:
                self.handle.detach()
                why = self.handle.ended()
                if why is not None or self.up or time.monotonic() > limit_s:
                    self._lose(why or str(why_not) or "it does not answer")
                if why is not None or time.monotonic() > limit_s:
                    return served
                await asyncio.sleep(ATTACH_S * self._random.uniform(0.5, 1.5))
                continue
            served = True
            await self._gone.wait()
            stuck = self._stuck_s > self._times.step_s
            if stuck or self.handle.ended() is not None:
                return served
            limit_s = time.monotonic() + self._times.grace_s

    def _back_off_s(self, failures: int) -> float:
        times = self._times
        limit_s = min(times.max_back_off_s, times.back_off_s * 2 ** min(failures - 1, 16))
        return self._random.uniform(0.5, 1.0) * limit_s if failures > 0 else 0.0

    def _line(self, text: bytes) -> None:
        self._heard_s = time.monotonic()
        told = json.loads(text)
        if "hello" in told:
            self.hello, self.state, self._stuck_s = told["hello"], "up", 0.0
            self._events.joined(self)
        elif self.up:
            if (beat := told.get("beat")) is not None:
                self._stuck_s = beat["stuck_s"]
                if beat["stats"] is not None:
                    self.stats = messages.stats_of(beat["stats"])
                if beat["failed"]:
                    self._part(beat["failed"])
                    return
            self._events.line(self, told)

    def _part(self, why: str) -> None:
        """The session is over."""
        self.handle.detach()
        self._pending.clear()
        if self.up:
            self._lose(why)
        self._gone.set()

    def _lose(self, why: str) -> None:
        self.why = why
        if self.state == "lost":
            return  # the same loss, explained: the system told the end of the process after its stream broke
        if not self.leaving:
            self.losses += 1
            logging.warning("worker %d is lost: %s", self.place, why)
        was_up, self.state = self.up, "lost"
        if was_up:
            self._events.lost(self, why)

    def _send(self) -> None:
        lines, self._pending = self._pending, []
        if lines and self.up:
            self.handle.send(lines)
