"""A checkpoint of this project as a model of the arena: our engine in a process of its own.

The process speaks JSON lines on its standard input and output, so that neither jax nor the engine is loaded
here, a step of the engine never delays a page, and a model that crashes ends only its own answers. It ends
by itself when this process does, however that ends: its input closes.

    -> {"id": 1, "messages": [...], "max_tokens": 256, "temperature": 0.7}     -> {"cancel": 1}
    <- {"id": 1, "text": "The"}     <- {"id": 1, "end": "stop"}     <- {"id": 1, "error": "..."}
"""

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncGenerator, Sequence

COMMAND = (sys.executable, "-m", "serving.evals", "worker")
LONGEST_LINE = 1 << 20


class EngineFailed(RuntimeError):
    """The engine's process ended, or could not answer. For the server's log, never for the page."""


class EngineProcess:
    """One engine process, started when it is first needed, and again after it died."""

    def __init__(self, checkpoint: str, command: Sequence[str] = COMMAND):
        self._command = [*command, f"--model={checkpoint}"]
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Queue[dict[str, str]]] = {}
        self._ids = itertools.count(1)
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Starts the process, if it does not run; the model loads while this returns."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LONGEST_LINE,
            )
            self._reading = asyncio.create_task(self._read(self._process))

    async def stream(
        self, messages: list[dict[str, str]], *, max_tokens: int, temperature: float
    ) -> AsyncGenerator[str]:
        """The pieces of an answer; leaving early cancels it in the engine.

        Raises:
          EngineFailed: the answer did not come to its end.
        """
        await self.start()
        number, queue = next(self._ids), asyncio.Queue[dict[str, str]]()
        self._answers[number] = queue
        ended = False
        try:
            call = {"id": number, "messages": messages, "max_tokens": max_tokens, "temperature": temperature}
            self._send(call)
            while not ended:
                event = await queue.get()
                if "error" in event:
                    ended = True
                    raise EngineFailed(event["error"])
                if text := event.get("text"):
                    yield text
                ended = "end" in event
        finally:
            self._answers.pop(number, None)
            if not ended:
                self._send({"cancel": number})

    def _send(self, line: dict[str, object]) -> None:
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, ConnectionError):  # a line that is no JSON ends the process
            while line := await process.stdout.readline():
                event = json.loads(line)
                if queue := self._answers.get(event.get("id", 0)):
                    queue.put_nowait(event)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code = await process.wait()
        for queue in self._answers.values():
            queue.put_nowait({"error": f"the engine's process ended with code {code}"})

    async def close(self) -> None:
        """Ends the process."""
        if self._process is not None and self._process.returncode is None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 5.0)
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        if self._reading is not None:
            await self._reading
