"""Just enough of HTTP to visit our own server on the loopback many times at once.

A full client costs about as much processor time as the server does, so that with 200 streams it would measure
itself. Every request here has a connection of its own, which the server closes.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import urlencode

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    """A response: status, headers by lower-case name, and body."""

    status: int
    headers: dict[str, str]
    body: str


async def ask(port: int, path: str, cookie: str = "", form: dict[str, str] | None = None) -> Answer:
    """GET, or with a form POST. Redirects are not followed.

    Raises:
      ConnectionError: the server does not answer.
    """
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(_request(port, path, cookie, form))
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        await _close(writer)
    if not head.startswith(b"HTTP/1.1 "):
        raise ConnectionError(f"the server did not answer {path}")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return Answer(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, body.decode())


async def pieces(port: int, path: str, cookie: str) -> AsyncGenerator[bytes]:
    """A stream's bytes as they come, the marks of chunks included."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(_request(port, path, cookie, None))
        await reader.readuntil(b"\r\n\r\n")
        while piece := await reader.read(65_536):
            yield piece
    finally:
        await _close(writer)


def _request(port: int, path: str, cookie: str, form: dict[str, str] | None) -> bytes:
    body = b"" if form is None else urlencode(form).encode()
    head = [
        f"{'GET' if form is None else 'POST'} {path} HTTP/1.1",
        f"Host: {HOST}:{port}",
        "Connection: close",
        f"Cookie: {cookie}",
    ]
    if form is not None:
        head += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
