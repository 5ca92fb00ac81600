"""Bodies of requests, read within limits, and clients that leave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request

from serving.http import body
from serving.http.body import Fields
from serving.http.errors import ApiError
from serving.http.settings import HttpLimits

ASIDE_BYTES = 64 << 10  # larger bodies are parsed in a thread
DISCARD_BYTES, DISCARD_S = 64 << 20, 2.0  # of a body that is too large, read so that our answer arrives


async def fields(request: Request, limits: HttpLimits) -> Fields:
    """The fields of a JSON body.

    Raises:
      ApiError: 413, 415 or 400.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    raw = await whole_body(request, limits.body_bytes)
    if packed not in ("", "identity"):
        message = f"the body is encoded as {packed[:60]!r}; send it as it is"
        raise ApiError(415, message, code="unsupported_encoding")
    if kind != "application/json" and not kind.endswith("+json"):
        message = f"the body is of type {kind[:60]!r}; send application/json"
        raise ApiError(415, message, code="unsupported_media_type")
    if len(raw) > ASIDE_BYTES:
        return Fields(await asyncio.to_thread(body.parse, raw))
    return Fields(body.parse(raw))


async def whole_body(request: Request, most: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    declared = request.headers.get("content-length", "")
    too_large = declared.isdigit() and int(declared) > most
    deadline_s = asyncio.get_running_loop().time() + DISCARD_S
    try:
        async for piece in request.stream():
            size += len(piece)
            too_large = too_large or size > most
            if too_large:
                pieces.clear()
                if size > DISCARD_BYTES or asyncio.get_running_loop().time() > deadline_s:
                    break
            else:
                pieces.append(piece)
    except ClientDisconnect:
        raise ApiError(400, "the client left while it sent its request", code="disconnected") from None
    if too_large:
        raise ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")
    return b"".join(pieces)


@contextlib.asynccontextmanager
async def watching(request: Request) -> AsyncIterator[asyncio.Task[None]]:
    """A task that ends when the client leaves: one await, no polling."""

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone: asyncio.Task[None] = asyncio.create_task(until_gone())
    try:
        yield gone
    finally:
        gone.cancel()


async def first_of[T](work: asyncio.Future[T], gone: asyncio.Task[Any]) -> T | None:
    """The result of `work`, or None if the client leaves first; `work` is cancelled then."""
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        return work.result()
    work.cancel()
    return None
