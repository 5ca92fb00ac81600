"""The dashboard: a page, its script and style, and a stream of figures. Nothing comes from elsewhere."""

import asyncio
import importlib.resources
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from serving.http.credentials import secret_of
from serving.http.errors import ApiError
from serving.http.fairness import LiveFairness, proven_bound
from serving.http.loop import EngineLoop
from serving.http.metrics import MAX_CLIENTS
from serving.http.service import Service

if TYPE_CHECKING:
    from serving.engine.engine import Engine

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILES = {
    "": ("serving.http", "dashboard.html"),
    "dashboard.css": ("serving.http", "dashboard.css"),
    "dashboard.js": ("serving.http", "dashboard.js"),
    "parts.js": ("serving.http", "parts.js"),
}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
EVERY_S = 1.0
MAX_VIEWERS = 32


class Dashboard:
    """See the module.

    Args:
      figures: what is shown of the backend once it serves.
      files: by name in the URL, the package and file of what a page consists of; "" is the page.
    """

    def __init__(
        self,
        service: Service,
        figures: Callable[[], Awaitable[dict[str, Any]]],
        files: Mapping[str, tuple[str, str]] = FILES,
    ) -> None:
        self._service, self._figures, self._files = service, figures, files
        self._began_s = time.monotonic()
        self._viewers = 0

    def routes(self) -> list[Route]:
        return [
            Route("/dashboard", self.page, methods=["GET"]),
            Route("/dashboard/events", self.events, methods=["GET"]),
            Route("/dashboard/{name}", self.file, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        return self._file(request, "")

    async def file(self, request: Request) -> Response:
        return self._file(request, request.path_params["name"])

    async def events(self, request: Request) -> Response:
        self._allow(request)
        if self._viewers >= MAX_VIEWERS:
            message = f"{MAX_VIEWERS} pages are open already"
            raise ApiError(503, message, code="too_many_viewers", retry_after_s=10)
        return StreamingResponse(self._stream(), headers=HEADERS, media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        self._viewers += 1
        try:
            while not self._service.draining:
                yield b"data: " + json.dumps(await self.snapshot()).encode() + b"\n\n"
                await asyncio.sleep(EVERY_S)
            yield b'data: {"state": "draining"}\n\n'
        finally:
            self._viewers -= 1

    async def snapshot(self) -> dict[str, Any]:
        """What the page shows."""
        service = self._service
        why = service.unhealthy
        model = service.model
        state = "unhealthy" if why else "draining" if service.draining else "ready" if model else "starting"
        shown: dict[str, Any] = {
            "state": state,
            "why": why,
            "model": model.name if model else None,
            "uptime_s": round(time.monotonic() - self._began_s),
            "open_calls": len({id(opened) for opened in service.calls.values()}),
        }
        if model is not None and not why:
            shown |= await self._figures()
            shown["tok_per_s"] = service.metrics.tok_per_s()
            shown["ttft_s"], shown["itl_s"] = map(service.metrics.quantiles, ("ttft", "itl"))
        return shown

    def _file(self, request: Request, name: str) -> Response:
        self._allow(request)
        if name not in self._files:
            raise ApiError(404, f"there is no file {name[:100]!r}", code="not_found")
        package, file = self._files[name]
        content = importlib.resources.files(package).joinpath(file).read_bytes()
        return Response(content, headers=HEADERS, media_type=TYPES[file.rpartition(".")[2]])

    def _allow(self, request: Request) -> None:
        try:
            self._service.key_of(secret_of(request.headers))
        except ApiError as error:
            error.challenge = 'Basic realm="mixattn: any name, an API key as the password"'
            raise


def engine_figures(loop: EngineLoop, fairness: LiveFairness) -> Callable[[], Awaitable[dict[str, Any]]]:
    """What the page of one engine shows."""
    return lambda: loop.ask(lambda engine: _of_engine(engine, fairness))


def _of_engine(engine: "Engine", fairness: LiveFairness) -> dict[str, Any]:
    stats = engine.stats()
    by_service = sorted(fairness.served.items(), key=lambda item: -item[1])
    clients = [
        {
            "name": name,
            "served": round(served),
            "running": fairness.running.get(name, 0),
            "waiting": fairness.waiting.get(name, 0),
        }
        for name, served in by_service[:MAX_CLIENTS]
    ]
    return {
        "running": stats.running,
        "waiting": stats.waiting,
        "slots": stats.slots,
        "hit_rate": stats.hit_rate,
        "output_tok": stats.output_tok,
        "resets": stats.resets,
        "finished": stats.finished,
        "policy": engine.config.policy,
        "policy_failure": stats.policy_failure,
        "gap": fairness.gap,
        "bound": None if stats.policy_failure else proven_bound(engine),
        "clients": clients,
        "more_clients": max(0, len(by_service) - MAX_CLIENTS),
        "pools": [
            {"kind": str(kind), "used": used, "cached": cached, "free": free, "pages": pages}
            for kind, (used, cached, free, pages) in stats.pages.items()
        ],
    }
