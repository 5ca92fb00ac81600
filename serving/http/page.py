"""The dashboard: a page, its script and style, and a stream of figures. Nothing comes from elsewhere."""

import asyncio
import importlib.resources
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from serving.engine.engine import Engine
from serving.http.credentials import secret_of
from serving.http.errors import ApiError
from serving.http.fairness import LiveFairness, proven_bound
from serving.http.metrics import MAX_CLIENTS
from serving.http.service import Service

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
FILES = {"": "text/html", "dashboard.css": "text/css", "dashboard.js": "text/javascript"}
EVERY_S = 1.0
MAX_VIEWERS = 32


class Dashboard:
    """See the module."""

    def __init__(self, service: Service, fairness: LiveFairness) -> None:
        self._service, self._fairness = service, fairness
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
            shown |= await service.loop.ask(self._of_engine)
            shown["tok_per_s"] = service.metrics.tok_per_s()
            shown["ttft_s"], shown["itl_s"] = map(service.metrics.quantiles, ("ttft", "itl"))
        return shown

    def _of_engine(self, engine: Engine) -> dict[str, Any]:
        stats, fairness = engine.stats(), self._fairness
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

    def _file(self, request: Request, name: str) -> Response:
        self._allow(request)
        if name not in FILES:
            raise ApiError(404, f"there is no file {name[:100]!r}", code="not_found")
        content = importlib.resources.files("serving.http").joinpath(name or "dashboard.html").read_bytes()
        return Response(content, headers=HEADERS, media_type=FILES[name])

    def _allow(self, request: Request) -> None:
        try:
            self._service.key_of(secret_of(request.headers))
        except ApiError as error:
            error.challenge = 'Basic realm="mixattn: any name, an API key as the password"'
            raise
