"""One call of a completions or chat route: the request's bytes, and what its answer says."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.bench.client.connection import RawAnswer, ServerAddress


@dataclass
class CallRecord:
    """What one request got. Times are seconds on the monotonic clock.

    Attributes:
      due_s: when it should have been sent; sent_s: when it was.
      text_s: arrival of every event with text; the first is the first token.
      error: why it has no answer; empty if it has.
    """

    client: str
    due_s: float = 0.0
    sent_s: float = 0.0
    end_s: float = 0.0
    text_s: list[float] = field(default_factory=list)
    status: int = 0
    error: str = ""
    events: int = 0
    prompt_tok: int = 0
    cached_tok: int = 0
    output_tok: int = 0
    finish_reason: str = ""
    id: str = ""

    @property
    def ttft_s(self) -> float:
        return self.text_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first; 0 for a single token."""
        return (self.text_s[-1] - self.text_s[0]) / (self.output_tok - 1) if self.output_tok > 1 else 0.0

    @property
    def gaps_s(self) -> list[float]:
        """Between events with text."""
        return [b - a for a, b in zip(self.text_s, self.text_s[1:])]


def request_bytes(
    server: ServerAddress, path: str, body: dict[str, Any] | None, headers: dict[str, str]
) -> bytes:
    """A whole HTTP request.

    Raises:
      ValueError: a header holds a line break.
    """
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {server.prefix}{path} HTTP/1.1",
        f"Host: {server.host_header}",
        "Accept: */*",
    ]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    for name, value in headers.items():
        if "\n" in name + value or "\r" in name + value:
            raise ValueError(f"the header {name!r} holds a line break")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(time at which it was complete, data) of each server-sent event, however the bytes were cut."""
    rest = b""
    for at_s, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield at_s, line[5:].strip()


def read_stream(record: CallRecord, answer: RawAnswer) -> None:
    """Fills a record from a streamed answer; `error` says what is wrong with it."""
    record.status = answer.status
    if answer.status != 200:
        record.error = f"HTTP {answer.status}: {_message(answer.body)}"
        return
    done = False
    for at_s, data in events(answer.pieces):
        record.events += 1
        if data == b"[DONE]":
            done = True
            continue
        try:
            value = json.loads(data)
            _take(record, at_s, value)
        except (ValueError, AttributeError, TypeError, KeyError):
            record.error = f"an event is not as the protocol says: {data[:200]!r}"
            return
        if record.error:
            return
    record.output_tok = record.output_tok or len(record.text_s)  # a server without usage in streams
    if not done or not record.finish_reason:
        record.error = "the stream ended before the answer did"
    elif not record.text_s:  # it ended at its first token
        record.text_s.append(answer.pieces[-1][0])


def _take(record: CallRecord, at_s: float, value: dict[str, Any]) -> None:
    if "error" in value:
        record.error = f"an error event: {_message(json.dumps(value).encode())}"
        return
    record.id = record.id or value.get("id") or ""
    if used := value.get("usage"):
        record.prompt_tok, record.output_tok = used["prompt_tokens"], used["completion_tokens"]
        record.cached_tok = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in value.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            record.text_s.append(at_s)
        record.finish_reason = choice.get("finish_reason") or record.finish_reason


def _message(body: bytes) -> str:
    """The message of OpenAI's error object, or the body's first characters."""
    try:
        return str(json.loads(body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:300].decode("utf-8", "replace")
