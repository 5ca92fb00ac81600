"""Every answer carries a strict Content-Security-Policy, and every visitor a signed session cookie."""

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixattn.evals.arena.platform import tokens

COOKIE = "arena_session"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class SafeHeaders:
    """ASGI middleware: `request.state.session` is the visitor's identifier."""

    def __init__(self, app: ASGIApp, secret: bytes, cookie: str):
        self._app, self._secret, self._cookie = app, secret, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = tokens.unseal(self._secret, Request(scope).cookies.get(self._cookie, ""))
        session = known or tokens.new_id()
        scope.setdefault("state", {})["session"] = session

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
                if known is None and not scope["path"].startswith("/static"):
                    sealed = tokens.seal(self._secret, session)
                    cookie = f"{self._cookie}={sealed}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"
                    headers.append("Set-Cookie", cookie)
            await send(message)

        await self._app(scope, receive, with_headers)
