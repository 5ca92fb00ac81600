"""One server process: its parts put together, started, served, and ended."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from absl import logging
from starlette.routing import Route

from mixattn import hf
from mixattn.tools.descriptors import raise_limit
from serving.config import EngineConfig
from serving.http.app import build
from serving.http.backend import Backend, Deliver
from serving.http.fairness import LiveFairness
from serving.http.keys import KeyRing
from serving.http.loop import EngineLoop
from serving.http.metrics import ServerMetrics
from serving.http.operations import Operations
from serving.http.options import StartOptions, engine_config
from serving.http.page import Dashboard, engine_figures
from serving.http.server import DrainingServer
from serving.http.service import Service
from serving.http.settings import HttpLimits
from serving.http.startup import Starter

OTHER_FILES = 128  # beside connections: weights, caches, pipes, the compiler's

type Override = Callable[[EngineConfig], EngineConfig]


@dataclass(frozen=True, kw_only=True)
class Door:
    """How the server is reached.

    Attributes:
      socket: bound and listening.
      host: as the command line names it.
      keys: None = anyone who reaches it.
      compat: also export metrics under the names of other servers.
      event_log: a file for the engine's events.
    """

    socket: socket.socket
    host: str
    keys: KeyRing | None
    limits: HttpLimits
    compat: bool = False
    event_log: Path | None = None


class Assembly(Protocol):
    """What a server consists of behind its front door."""

    def backend(self, deliver: Deliver) -> Backend:
        """What computes."""
        ...

    def routes(self, service: Service) -> list[Route]:
        """Routes beside those of the protocol and of operations."""
        ...

    def start(self, service: Service) -> Awaitable[None]:
        """Sets `service.model` once it can serve. Raises ValueError if it never can."""
        ...

    def ready(self) -> str:
        """More of the line that says it is ready."""
        ...

    async def end(self) -> None:
        """The server has ended."""
        ...


class SingleEngine:
    """One engine in a thread of this process.

    Args:
      more: routes beside its own.
    """

    def __init__(
        self,
        options: StartOptions,
        limits: HttpLimits,
        override: Override,
        more: Callable[[Service], list[Route]] = lambda service: [],
    ) -> None:
        self._options, self._limits, self._override, self._more = options, limits, override, more

    def backend(self, deliver: Deliver) -> EngineLoop:
        self.loop = EngineLoop(deliver)
        return self.loop

    def routes(self, service: Service) -> list[Route]:
        fairness = LiveFairness()
        self.loop.listeners.append(fairness.take)
        return [*Dashboard(service, engine_figures(self.loop, fairness)).routes(), *self._more(service)]

    async def start(self, service: Service) -> None:
        await Starter(service, self.loop, self._options, self._limits, self._override, say).run()

    def ready(self) -> str:
        return ""

    async def end(self) -> None:
        pass


def check(options: StartOptions, override: Override) -> None:
    """Raises ValueError where the checkpoint's config and the options cannot make an engine."""
    override(engine_config(hf.read_config(options.checkpoint), options, []))


def run(
    options: StartOptions,
    door: Door,
    override: Override,
    assemble: Callable[[StartOptions, HttpLimits, Override], Assembly] = SingleEngine,
) -> int:
    """Serves until a signal; returns the exit status.

    Raises:
      ValueError: the checkpoint cannot be served.
    """
    limits = _within_descriptors(door.limits)
    assembly = assemble(options, limits, override)
    metrics = ServerMetrics(options.name, compat=door.compat)
    service = Service(limits, metrics, door.keys, assembly.backend)
    hosts = None
    if door.keys is None:
        hosts = frozenset({"127.0.0.1", "localhost", "[::1]", "::1", door.host})
    operations = Operations(service, {"checkpoint": str(options.checkpoint)})
    app = build(service, [*operations.routes(), *assembly.routes(service)], hosts)
    server = DrainingServer(app, service)
    with contextlib.ExitStack() as stack:
        if door.event_log is not None:
            stack.enter_context(_logging_events(service, door.event_log))
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            status = runner.run(_life(server, assembly, service, door))
    if server.force_exit:  # the engine's thread may be in the middle of a long step
        _end_at_once(status)
    return status


def _within_descriptors(limits: HttpLimits) -> HttpLimits:
    """The limits, with no more connections than there are descriptors: what is refused gets an answer."""
    wanted = limits.connections + OTHER_FILES
    room = raise_limit(wanted) - OTHER_FILES
    if room >= limits.connections:
        return limits
    say(f"warning: the system allows {max(room, 1)} connections, --limit_connections={limits.connections}")
    return dataclasses.replace(limits, connections=max(room, 1))


def _end_at_once(status: int) -> None:
    """Ends the process without waiting for its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


async def _life(server: DrainingServer, assembly: Assembly, service: Service, door: Door) -> int:
    events = asyncio.get_running_loop()
    serving = events.create_task(server.serve(sockets=[door.socket]))
    if service.keys is not None:
        events.add_signal_handler(signal.SIGHUP, _reload, service.keys)
    starting = asyncio.ensure_future(assembly.start(service))
    await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done() and (why := starting.exception()) is not None:
        server.stop(2)
        await serving
        await assembly.end()
        raise why
    if starting.done():
        name = service.model.name if service.model else ""
        print(f"ready {_url(door)} model {name}{assembly.ready()}", flush=True)
    await serving
    await assembly.end()
    if not starting.done():  # stopped before it was ready: a compilation cannot be interrupted
        _end_at_once(server.status)
    service.loop.stop(wait=not server.force_exit)
    if service.model is not None:
        service.model.prompts.template.close()
    return server.status


def _url(door: Door) -> str:
    if door.socket.family == socket.AF_UNIX:
        return f"unix:{door.socket.getsockname()}"
    address = f"[{door.host}]" if ":" in door.host else door.host
    return f"http://{address}:{door.socket.getsockname()[1]}"


def _reload(keys: KeyRing) -> None:
    try:
        keys.reload()
        say(f"read {len(keys.keys)} keys again; a changed weight counts from the next start")
    except ValueError as why:
        logging.error("the old keys stay: %s", why)


@contextlib.contextmanager
def _logging_events(service: Service, path: Path) -> Iterator[None]:
    """Writes each event as it happens; what is written is whole once the server has ended."""
    with path.open("w", buffering=1 << 16) as out:

        def listener(event: dict[str, Any]) -> None:
            out.write(json.dumps(event) + "\n")

        service.loop.listeners.append(listener)
        yield


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
