"""One HTTP/1.1 connection: what arrives is noted with its time and parsed later.

An event costs a parser call in C and one append, so that a core follows many thousand events a second.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is: host, port, whether by TLS, and the path before /v1."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, base_url: str) -> "ServerAddress":
        """Reads http://HOST:PORT[/PREFIX]; a final /v1 may be there or not.

        Raises:
          ValueError: not such a URL.
        """
        parts = urlsplit(base_url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ValueError(f"--base_url={base_url} is not like http://127.0.0.1:8000")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
        return cls(parts.hostname, port or (443 if tls else 80), tls, prefix)

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass
class RawAnswer:
    """What came back.

    Attributes:
      pieces: (seconds on the monotonic clock, bytes of the body).
      headers: names in lower case.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class HttpConnection(asyncio.Protocol):
    """One connection, one exchange at a time. Its callbacks are asyncio's and the parser's."""

    def __init__(self, server: ServerAddress) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self.reusable = False
        self.answer = RawAnswer()

    @classmethod
    async def open(cls, server: ServerAddress) -> "HttpConnection":
        """Raises OSError."""
        context = ssl.create_default_context() if server.tls else None
        events = asyncio.get_running_loop()
        _, made = await events.create_connection(lambda: cls(server), server.host, server.port, ssl=context)
        return made

    async def exchange(self, request: bytes) -> RawAnswer:
        """Sends a request and waits for the whole answer.

        Raises:
          ConnectionError: the connection ended before the answer did.
          httptools.HttpParserError: what came is not HTTP.
        """
        assert self._transport is not None
        self.answer, self.reusable = RawAnswer(), False
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        return self.answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            self.close()  # nothing was asked for
            return
        self._now_s = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as why:
            self._fail(why)

    def connection_lost(self, why: Exception | None) -> None:
        self.reusable = False
        self._fail(ConnectionError("the server closed the connection before the answer was complete"))

    def _fail(self, why: Exception) -> None:
        self.reusable = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(why)

    # ---- httptools ----

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answer.pieces.append((self._now_s, body))

    def on_message_complete(self) -> None:
        if self.answer.status >= 200 and self._done is not None and not self._done.done():
            self.reusable = self._parser.should_keep_alive()
            self._done.set_result(None)


class ConnectionPool:
    """Connections that are free for the next request; a closed one is replaced."""

    def __init__(self, server: ServerAddress) -> None:
        self._server = server
        self._free: list[HttpConnection] = []

    async def take(self) -> HttpConnection:
        while self._free:
            if (kept := self._free.pop()).reusable:
                return kept
        return await HttpConnection.open(self._server)

    def give_back(self, connection: HttpConnection) -> None:
        if connection.reusable:
            self._free.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()
