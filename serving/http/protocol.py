"""The connection: uvicorn's HTTP/1.1 protocol with time-outs, size limits and refusals that arrive.

uvicorn bounds neither how long a request's head or body may take nor, once it has come whole, how large the
head is; and h11 accepts Content-Length beside Transfer-Encoding, which proxies may read otherwise than we do.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.http.errors import ApiError
from serving.http.settings import HttpLimits

# A refused client may still be sending; closing at once would destroy our answer.
QUIET_S, LINGER_S = 0.25, 5.0  # so long without a byte from it, or after so long anyway, it is closed
LINGER_BYTES = 16 << 20
PROBE_S, PROBES_S = 0.01, 1.0  # after the peer ended its side: whether it is still there, first and at most
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class CheckedConnection(h11.Connection):
    """An h11 connection that refuses heads it should not trust."""

    def __init__(self, limits: HttpLimits) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._limits = limits
        self.failure: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check(event)
        except h11.RemoteProtocolError as why:
            self.failure = why
            raise
        return event

    def _check(self, request: h11.Request) -> None:
        names = [name for name, _ in request.headers]
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self._limits.header_bytes or len(names) > self._limits.header_lines:
            most = f"{self._limits.header_bytes} bytes and {self._limits.header_lines} lines"
            raise h11.RemoteProtocolError(
                f"the head has {size} bytes in {len(names)} lines; at most {most}", 431
            )
        if b"content-length" in names and b"transfer-encoding" in names:
            raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding stand side by side")


class GuardedProtocol(H11Protocol):
    """One connection; `guarded` sets `limits` and `refused`.

    Attributes:
      unread_since_s: since when the peer has not taken what was written, on the event loop's clock.
    """

    limits: HttpLimits
    refused: Callable[[int], None]

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: CheckedConnection = CheckedConnection(self.limits)
        self._timer: asyncio.TimerHandle | None = None
        self._phase = ""
        self._refused = False
        self._lingered = 0
        self._ended = False  # the peer sends nothing more, and may still read
        self.unread_since_s: float | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            message = f"{self.limits.connections} connections are open already"
            self.refuse(ApiError(503, message, code="too_many_connections", retry_after_s=1))
            return
        self._enter("head", self.limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("closed", None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self.unread_since_s = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.unread_since_s = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self.transport.abort()
            return
        try:
            super().data_received(data)
        except h11.RemoteProtocolError as why:  # trailing data of a connection that already failed
            self._refuse_request(why)
        except UnicodeDecodeError:
            self._refuse_request(h11.RemoteProtocolError("the target is not ASCII"))
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._refuse_request(self.conn.failure or h11.RemoteProtocolError(msg))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._ended and self.cycle.response_complete:
            self.transport.close()
        elif not self._refused:
            self._watch()

    def refuse(self, error: ApiError) -> None:
        """Writes an error that does not pass through the application, and closes."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self.refused(error.status)
        self._enter("refused", None)
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:  # too late for another answer
                self.transport.abort()
                return
        body = error.encoded()
        lines = [f"HTTP/1.1 {error.status} {PHRASES.get(error.status, 'Error')}"]
        lines += [f"{name}: {value}" for name, value in error.headers.items()]
        lines += ["content-type: application/json", f"content-length: {len(body)}", "connection: close"]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.resume_reading()
        self._close_when_quiet(self.loop.time() + LINGER_S)

    def eof_received(self) -> bool | None:
        """A peer that ended its side may have left, or wait for its answer: the next write tells."""
        if self._refused:
            self.transport.close()
            return None
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self._speaks_1_0():
            return None
        self._ended = True
        self._ask_whether_it_reads(PROBE_S)
        return True

    # ---- inside ----

    def _close_when_quiet(self, until_s: float, lingered: int = -1) -> None:
        if self._lingered == lingered or self.loop.time() > until_s:
            self.transport.close()
        else:
            self.loop.call_later(QUIET_S, self._close_when_quiet, until_s, self._lingered)

    def _speaks_1_0(self) -> bool:
        """HTTP/1.0 knows no interim answers."""
        return bool(self.scope["http_version"] == "1.0")

    def _ask_whether_it_reads(self, again_s: float) -> None:
        """Writes an interim answer, which a peer that left refuses: the connection is lost then."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not self.cycle.response_started:
            self.transport.write(INTERIM)
        self.loop.call_later(again_s, self._ask_whether_it_reads, min(4 * again_s, PROBES_S))

    def _refuse_request(self, why: h11.RemoteProtocolError) -> None:
        status = why.error_status_hint
        status = status if status in (400, 431) else 400  # an unknown coding too: the mistake is the client's
        self.refuse(ApiError(status, f"not a valid HTTP request: {why}", code="invalid_http"))

    def _watch(self) -> None:
        """Starts the timer of what the connection now waits for."""
        if self._refused or self.transport.is_closing():
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._enter("body", self.limits.body_s)
        elif state is h11.IDLE and self.conn.trailing_data[0]:
            self._enter("head", self.limits.header_s)
        elif state is h11.IDLE and self._phase == "head":
            return  # a new connection that has sent nothing
        else:
            self._enter("", None)

    def _enter(self, phase: str, limit_s: float | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if limit_s is None else self.loop.call_later(limit_s, self._too_slow)

    def _too_slow(self) -> None:
        limit_s = self.limits.header_s if self._phase == "head" else self.limits.body_s
        message = f"the {self._phase} of the request did not arrive within {limit_s:g} s"
        self.refuse(ApiError(408, message, code="request_timeout"))


def guarded(limits: HttpLimits, refused: Callable[[int], None]) -> type[GuardedProtocol]:
    """The protocol class of one server.

    Args:
      refused: told the status of what was refused before the application saw it.
    """
    members = {"limits": limits, "refused": staticmethod(refused)}
    return type("GuardedProtocolOfServer", (GuardedProtocol,), members)
