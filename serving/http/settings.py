"""Limits of the server, each a flag of `python -m serving.http`."""

from dataclasses import dataclass

MAX_NAME = 256  # characters of a client's name


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What one request, one client and the server may take.

    Attributes:
      body_bytes, header_bytes, header_lines: of one request.
      connections: open at once; one more is answered 503 and closed.
      outputs: prompts times `n` of one call.
      stops, stop_chars: stop texts of a call, and the length of each.
      schema_bytes: of a JSON schema, a regular expression or a grammar.
      queued_requests, queued_tok: outputs that wait, and their prompt tokens; beyond them 503.
      header_s, body_s: to receive them; beyond that 408.
      keep_alive_s: an idle connection stays open.
      request_s: longest life of a request; `timeout` of a body may only shorten it.
      stall_s: a stream whose reader takes nothing for so long is cancelled.
      drain_s: after SIGTERM, for running requests to end.
      watchdog_s: a step that takes longer makes /health fail.
      template_s, template_chars: to render a chat template, and its longest result.
    """

    body_bytes: int = 4 << 20
    header_bytes: int = 64 << 10
    header_lines: int = 100
    connections: int = 2048
    outputs: int = 256
    stops: int = 16
    stop_chars: int = 1000
    schema_bytes: int = 64 << 10
    queued_requests: int = 256
    queued_tok: int = 1 << 20
    header_s: float = 10.0
    body_s: float = 30.0
    keep_alive_s: float = 75.0
    request_s: float = 600.0
    stall_s: float = 30.0
    drain_s: float = 30.0
    watchdog_s: float = 300.0
    template_s: float = 2.0
    template_chars: int = 4 << 20


HELP = {
    "body_bytes": "largest request body, in bytes",
    "header_bytes": "largest request head, in bytes",
    "header_lines": "most header lines of a request",
    "connections": "connections open at once",
    "outputs": "prompts times n of one call",
    "stops": "stop texts of one call",
    "stop_chars": "characters of a stop text",
    "schema_bytes": "bytes of a JSON schema, regular expression or grammar",
    "queued_requests": "outputs that may wait for a slot; more are answered 503",
    "queued_tok": "prompt tokens that may wait for a slot; more are answered 503",
    "header_s": "seconds to receive a request's head",
    "body_s": "seconds to receive a request's body",
    "keep_alive_s": "seconds that an idle connection stays open",
    "request_s": "longest life of a request in seconds; `timeout` in a body may only shorten it",
    "stall_s": "seconds after which a stream that nobody reads is cancelled",
    "drain_s": "seconds that running requests get after SIGTERM",
    "watchdog_s": "seconds after which a step counts as stuck and /health fails",
    "template_s": "seconds to render a chat template",
    "template_chars": "characters a rendered chat template may have",
}
