"""Routes for those who run the server: health, metrics, cache, abort, information."""

import asyncio
import dataclasses
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from serving.http import openapi, reading
from serving.http.clients import HttpCaller
from serving.http.credentials import secret_of
from serving.http.errors import ApiError, bad_field
from serving.http.keys import ApiKey
from serving.http.service import Service
from serving.http.wire import GenerationCall

HEALTH_S = 30.0  # for /health_generate


class Operations:
    """See the module."""

    def __init__(self, service: Service, info: dict[str, Any]) -> None:
        self.service, self.info = service, info

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/health_generate", self.health_generate, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/abort_request", self.abort, methods=["POST"]),
            Route("/flush_cache", self.flush, methods=["POST", "GET"]),
            Route("/get_server_info", self.server_info, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def health(self, request: HttpRequest) -> Response:
        if why := self.service.unhealthy:
            raise ApiError(503, why, code="unhealthy", retry_after_s=10)
        return JSONResponse({"status": "ok"})

    async def ready(self, request: HttpRequest) -> Response:
        model = self.service.ready_model()
        return JSONResponse({"status": "ready", "model": model.name})

    async def health_generate(self, request: HttpRequest) -> Response:
        """One token, end to end."""
        service = self.service
        service.ready_model()
        self._key(request)
        call = GenerationCall(
            kind="ids", sampling={"temperature": 0.0}, prompts=[[0]], max_tokens=1, timeout_s=HEALTH_S
        )
        opened = await service.open(call, HttpCaller(None, "health", "health"))
        try:
            async with asyncio.timeout(HEALTH_S):
                while opened.active.open:
                    await opened.active.fetch()
        except TimeoutError:
            message = f"no token within {HEALTH_S:g} s"
            raise ApiError(503, message, code="unhealthy", retry_after_s=10) from None
        finally:
            service.close(opened)
        if opened.outputs[0].finish_reason not in ("stop", "length"):
            raise ApiError(503, f"the token ended as {opened.outputs[0].finish_reason}", code="unhealthy")
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: HttpRequest) -> Response:
        self._key(request)
        service = self.service
        if service.model is not None and not service.loop.failed:
            service.metrics.set_engine(await service.loop.stats(), await service.loop.served())
        kind = "text/plain; version=1.0.0; charset=utf-8"
        return PlainTextResponse(service.metrics.text(), media_type=kind)

    async def abort(self, request: HttpRequest) -> Response:
        service = self.service
        service.ready_model()
        key = self._key(request)
        fields = await reading.fields(request, service.limits)
        rid = fields.text("rid")
        if rid is None:
            raise bad_field("rid", "rid is missing: the id that the request was sent with")
        opened = service.rids.get(rid)
        if opened is None or (key is not None and not key.admin and opened.active.key != key.name):
            raise ApiError(404, f"no live request has rid {rid[:100]!r}", param="rid", code="not_found")
        service.abort(opened)
        return JSONResponse({"status": "aborted", "rid": rid})

    async def flush(self, request: HttpRequest) -> Response:
        service = self.service
        service.ready_model()
        key = self._key(request)
        if key is not None and not key.admin:
            raise ApiError(403, "this key may not flush the cache", code="forbidden")
        if not await service.loop.flush():
            raise ApiError(400, "requests are running; the cache is flushed only when idle", code="busy")
        return JSONResponse({"status": "flushed"})

    async def server_info(self, request: HttpRequest) -> Response:
        service = self.service
        model = service.ready_model()
        self._key(request)
        stats = await service.loop.stats()
        return JSONResponse(
            {
                "model": model.name,
                "max_model_len": model.max_tok,
                "vocab_size": model.vocab,
                "engine": service.loop.described(),
                "limits": dataclasses.asdict(service.limits),
                "stats": dataclasses.asdict(stats),
                "open_calls": service.open_calls,
                **self.info,
            }
        )

    async def openapi(self, request: HttpRequest) -> Response:
        model = self.service.model
        return JSONResponse(openapi.document(self.service.limits, model.name if model else "a model"))

    def _key(self, request: HttpRequest) -> ApiKey | None:
        return self.service.key_of(secret_of(request.headers))
