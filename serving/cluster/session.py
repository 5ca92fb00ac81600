"""The worker's side: runs what one ingress asks of the engine of this process, and tells what came of it.

An engine serves one ingress at a time. When that one goes, all that runs for it is cancelled; a later one
starts from nothing but the cache. Transports carry the lines (see `messages`).
"""

import asyncio
import dataclasses
import json
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from serving.cluster import messages
from serving.cluster.live_output import AttemptId
from serving.http.backend import StepReport
from serving.http.errors import ApiError
from serving.http.grammar import GrammarAsked, MakeGrammar
from serving.http.loop import EngineLoop
from serving.request import RequestId

GRAMMARS = 64  # compiled ones that are kept: an output of the same call, or a retry, needs the same


@dataclass(slots=True)
class RunningAttempt:
    """An attempt in the engine; `told` counts its deltas."""

    attempt: AttemptId
    told: int = 0


class WorkerSession:
    """See the module.

    Args:
      number: distinguishes this session's requests from those of earlier ones.
      compile: makes a grammar; raises ApiError. None: there are none.
      beat_s: seconds between two signs of life.
    """

    def __init__(
        self,
        number: int,
        loop: EngineLoop,
        compile: Callable[[GrammarAsked], MakeGrammar] | None,
        *,
        beat_s: float,
    ) -> None:
        self.number = number
        self._loop, self._compile, self._beat_s = loop, compile, beat_s
        self._running: dict[RequestId, RunningAttempt] = {}
        self._compiling: dict[AttemptId, asyncio.Task[None]] = {}
        self._grammars: OrderedDict[GrammarAsked, MakeGrammar] = OrderedDict()
        self._lines: list[bytes] = []
        self._wake = asyncio.Event()
        self._stats: dict[str, Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closed = False

    def hello(self) -> messages.Line:
        config = self._loop.engine.config
        return {
            "hello": {
                "session": self.number,
                "pid": os.getpid(),
                "slots": config.max_slots,
                "page_tok": config.page_size,
                "max_tok": config.max_request_tok,
            }
        }

    async def lines(self) -> AsyncIterator[bytes]:
        """All that the ingress shall know, until `close`."""
        self._say(self.hello())
        self._start(self._beat())
        while not self.closed:
            if not self._lines:
                self._wake.clear()
                await self._wake.wait()
            lines, self._lines = self._lines, []
            if lines:
                yield b"".join(lines)

    def close(self) -> None:
        """The ingress is gone."""
        self.closed = True
        for task in (*self._tasks, *self._compiling.values()):
            task.cancel()
        self._loop.cancel(list(self._running))
        self._running.clear()
        self._wake.set()

    # ---- commands ----

    def take(self, lines: bytes) -> None:
        """Carries out commands. Raises ValueError for what is none."""
        for text in lines.splitlines():
            kind, *values = json.loads(text)
            match kind:
                case "run":
                    self._run(*values)
                case "stop":
                    self._stop(*values)
                case "flush":
                    self._start(self._flush(*values))
                case _:
                    raise ValueError(f"unknown command {kind!r}")

    def _run(self, attempt: AttemptId, told: dict[str, Any]) -> None:
        asked = messages.grammar_of(told)
        if asked is None or asked in self._grammars:
            self._submit(attempt, told, None if asked is None else self._grammars[asked])
        else:
            self._compiling[attempt] = asyncio.get_running_loop().create_task(
                self._with_grammar(attempt, told, asked)
            )

    async def _with_grammar(self, attempt: AttemptId, told: dict[str, Any], asked: GrammarAsked) -> None:
        try:
            if self._compile is None:
                raise ApiError(400, "this worker knows no grammars", code="invalid_grammar")
            made = await asyncio.to_thread(self._compile, asked)
        except ApiError as why:
            self._say({"r": [[attempt, why.message]]})
        else:
            self._grammars[asked] = made
            while len(self._grammars) > GRAMMARS:
                self._grammars.popitem(last=False)
            self._submit(attempt, told, made)
        finally:
            self._compiling.pop(attempt, None)

    def _submit(self, attempt: AttemptId, told: dict[str, Any], grammar: MakeGrammar | None) -> None:
        id = f"{self.number}.{attempt}"
        try:
            request = messages.request_of(id, told, grammar)
        except (ValueError, TypeError, KeyError) as why:
            self._say({"r": [[attempt, str(why)]]})
            return
        self._running[id] = RunningAttempt(attempt)
        self._loop.submit([request])

    def _stop(self, attempt: AttemptId) -> None:
        if (compiling := self._compiling.pop(attempt, None)) is not None:
            compiling.cancel()
        if self._running.pop(id := f"{self.number}.{attempt}", None) is not None:
            self._loop.cancel([id])

    async def _flush(self, number: int) -> None:
        self._say({"flushed": [number, await self._loop.flush()]})

    # ---- reports ----

    def report(self, report: StepReport) -> None:
        """Passes on what a step of the engine brought to this session."""
        running = self._running
        told: messages.Line = {}
        admitted = [[running[id].attempt, e, h] for id, e, h in report.admitted if id in running]
        refused = [[running.pop(id).attempt, why] for id, why in report.refused if id in running]
        deltas = []
        for delta in report.deltas:
            here = running.get(delta.id)
            if here is not None:
                deltas.append(messages.delta_row(here.attempt, here.told, delta))
                here.told += 1
                if delta.output is not None:
                    del running[delta.id]
        for name, rows in (("a", admitted), ("d", deltas), ("r", refused)):
            if rows:
                told[name] = rows
        if told:
            self._say(told)

    async def _beat(self) -> None:
        """Says that this process lives, also in a long step; counters come when the engine has time."""
        asking: asyncio.Future[Any] | None = None
        while True:
            if asking is None or asking.done():
                asking = self._start(self._ask())
            beat = {"stuck_s": self._loop.stuck_s(), "failed": self._loop.failed, "stats": self._stats}
            self._say({"beat": beat})
            await asyncio.sleep(self._beat_s)

    async def _ask(self) -> None:
        self._stats = dataclasses.asdict(await self._loop.stats())

    def _say(self, told: messages.Line) -> None:
        if not self.closed:
            self._lines.append(messages.line(told))
            self._wake.set()

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
