"""Workers without engines or processes, driven through the same lines as real ones; they fail on demand."""

import asyncio
import itertools
import json
import random

from serving.cluster import messages
from serving.cluster.workers import NotReady

PIDS = itertools.count(100)


def token(seed, at):
    """The output of a request: it depends on nothing but its seed and the position."""
    return random.Random(f"{seed}/{at}").randrange(1000)


class FakeHandle:
    """See `serving.cluster.workers.WorkerHandle`.

    Attributes:
      silent: says nothing, though it lives; refusing: cannot be reached; speed: steps per second.
    """

    def __init__(self, place, slots=4, speed=400.0):
        self.place, self.slots, self.speed = place, slots, speed
        self.pid = None
        self.silent = self.refusing = self.dead = False
        self.why = "it was not started"
        self.task = None
        self.running = {}
        self.number = 0
        self.starts = 0

    def start(self):
        self.pid, self.why = next(PIDS), None
        self.silent = self.dead = False
        self.running = {}
        self.starts += 1

    def ended(self):
        return self.why

    async def attach(self, on_line, on_end):
        if self.why is not None or self.refusing or self.dead:
            raise NotReady("it refuses")
        if self.silent:
            await asyncio.sleep(60)
        self.running.clear()
        self.number += 1
        self.on_line, self.on_end = on_line, on_end
        hello = {"session": self.number, "pid": self.pid, "slots": self.slots, "page_tok": 4, "max_tok": 99}
        on_line(messages.line({"hello": hello}))
        self.task = asyncio.get_running_loop().create_task(self.live())

    def send(self, lines):
        for line in lines:
            kind, *values = json.loads(line)
            if kind == "run":
                attempt, told = values
                request = messages.request_of(str(attempt), told, None)
                if request.prompt_ids[0] == 666:
                    self.tell({"r": [[attempt, "it asks for the impossible"]]})
                else:
                    self.running[attempt] = [request, list(request.resume_ids), 0, False]
            elif kind == "stop":
                self.running.pop(values[0], None)
            else:
                self.tell({"flushed": [values[0], not self.running]})

    def detach(self):
        if self.task is not None:
            self.task.cancel()
            self.task = None

    async def stop(self):
        self.detach()
        self.why = "it was ended"

    # ---- what it does, and what may be done to it ----

    def kill(self, seen_after_s=0.0):
        """Its stream breaks; the system may tell the end of the process later."""

        def seen():
            self.why = "it was ended by SIGKILL"

        asyncio.get_running_loop().call_later(seen_after_s, seen) if seen_after_s else seen()
        self.dead = True
        self.detach()
        self.on_end("its stream broke")

    def tell(self, told):
        if not self.silent:
            self.on_line(messages.line(told))

    async def live(self):
        beat = 0
        while True:
            await asyncio.sleep(1 / self.speed)
            if self.silent:
                continue
            self.step()
            beat += 1
            if beat % 10 == 0:
                self.tell({"beat": {"stuck_s": 0.0, "failed": None, "stats": None}})

    def step(self):
        admitted, deltas = [], []
        for attempt, held in list(self.running.items())[: self.slots]:
            request, ids, told, runs = held
            if not runs:
                held[3] = True
                admitted.append([attempt, len(request.prompt_ids) + len(ids), 0])
                continue
            ids.append(token(request.sampling.seed, len(ids)))
            over = len(ids) == request.sampling.max_tokens
            end = ["length", None, 0] if over else None
            new = ids if told == 0 else ids[-1:]  # a resumed output tells its text from the beginning
            deltas.append([attempt, told, ids[-1:], "".join(f"{id}," for id in new), 0, end])
            held[2] += 1
            if over:
                del self.running[attempt]
        if admitted:
            self.tell({"a": admitted})
        if deltas:
            self.tell({"d": deltas})
