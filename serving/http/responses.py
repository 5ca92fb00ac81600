"""How answers leave: whole, or as a stream of events. Both cancel their call when the client goes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from serving.http.errors import ApiError
from serving.http.reading import watching
from serving.http.service import OpenCall, Service
from serving.request import Output

EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def error_response(error: ApiError) -> Response:
    close = {"connection": "close"} if error.status in (408, 413) else {}
    return JSONResponse(error.body, error.status, headers={**error.headers, **close})


async def whole_answer(
    request: Request, service: Service, opened: OpenCall, shape: Callable[[list[Output]], Any]
) -> Response:
    """Waits for all outputs; an empty response to nobody if the client leaves first."""
    async with watching(request) as gone:
        try:
            gone.add_done_callback(lambda _: _left(service, opened, gone))
            while opened.active.open:
                await opened.active.fetch()
            if opened.active.error is not None:
                raise opened.active.error
            return JSONResponse(shape(opened.sorted_outputs))
        finally:
            service.close(opened)


def _left(service: Service, opened: OpenCall, gone: asyncio.Task[None]) -> None:
    if not gone.cancelled() and opened.active.open:
        opened.active.fail(ApiError(499, "the client left", code="client_closed_request"))
        service.close(opened)


class StreamAnswer(Response):
    """Server-sent events of one call.

    An error before the first byte is a plain error response; after it, an event, and the connection closes.
    """

    def __init__(self, service: Service, opened: OpenCall) -> None:
        self._service, self._opened = service, opened
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, opened = self._service, self._opened
        async with watching(Request(scope, receive)) as gone:
            gone.add_done_callback(lambda _: _left(service, opened, gone))
            self._started = False
            service.writing.add(opened)
            try:
                await self._stream(send)
            except ApiError as error:
                if error.status != 499:
                    await self._tell_error(error, scope, receive, send)
            finally:
                service.writing.discard(opened)
                service.close(opened)

    async def _stream(self, send: Send) -> None:
        opened = self._opened
        shape, place = opened.shape, opened.active.place
        buffered = opened.call.kind == "chat" and opened.call.tools is not None
        while opened.active.open or not self._started or opened.active.has_pending:
            events: list[bytes] = []
            deltas = await opened.active.fetch()
            if not self._started:
                events += shape.opening()
            for delta in deltas:
                if not buffered:
                    events += shape.chunks(place[delta.id], delta)
                elif delta.output is not None:
                    events += shape.tool_chunks(delta.index, delta.output)
            if not opened.active.open and not opened.active.has_pending:
                events += shape.ending(opened.sorted_outputs)
                await self._write(send, events, last=True)
            elif events:
                await self._write(send, events)

    async def _write(self, send: Send, events: list[bytes], last: bool = False) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
        await send({"type": "http.response.body", "body": b"".join(events), "more_body": not last})

    async def _tell_error(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await error_response(error)(scope, receive, send)
            return
        event = b"data: " + error.encoded() + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": False})


type Handler = Callable[[Request], Awaitable[Response]]
