"""What the ingress and a worker tell each other: lines of JSON, of plain numbers, texts and lists. Tokens of
prompts are 32-bit integers in base64: as numbers they would take longer than all else that a dispatch does.

To a worker go commands: `["run", attempt, request]`, `["stop", attempt]`, `["flush", number]`. From it come
objects of one key or more:

  * `hello`: once, first: what it can take.
  * `a`, `d`, `r`: what an engine step brought: `[attempt, extend_tok, hit_tok]` of outputs that began to run;
    `[attempt, number, ids, text, logprobs, end]` of deltas; `[attempt, why]` of requests it did not take.
  * `beat`: that it lives, and its counters.
  * `flushed`: `[number, done]`.

`reports` reads them.
"""

import binascii
import dataclasses
import json
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from serving.cluster.live_output import AttemptId, token_bytes
from serving.http.grammar import GrammarAsked, MakeGrammar
from serving.request import Request, RequestKeep, Sampling, TokenGrammar

type Line = dict[str, Any]

MAX_LINE_BYTES = 64 << 20  # a step's log-probabilities of long prompts may be some megabytes

_USUAL = vars(Sampling())
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # made once: `json.dumps` would make one each time


# ---- to a worker ----


def run_command(attempt: AttemptId, request: Request, prompt: bytes) -> bytes:
    """The line that starts an attempt; `prompt`: see `token_bytes`."""
    sampling = request.sampling
    told: dict[str, Any] = {
        "client": request.client,
        "sampling": {name: value for name, value in vars(sampling).items() if value != _USUAL[name]},
    }
    if request.cache_salt:
        told["salt"] = request.cache_salt
    if request.deadline_s is not None:
        told["deadline_s"] = request.deadline_s
    if request.priority:
        told["priority"] = request.priority
    if request.program:
        told["program"] = request.program
    if request.resume_ids:
        told["resume"] = _tokens(token_bytes(request.resume_ids))
    if request.forced_ids:
        told["forced"] = _tokens(token_bytes(request.forced_ids))
    if request.keep is not None:
        told["keep"] = dataclasses.asdict(request.keep)
    if request.grammar is not None:
        assert isinstance(request.grammar, MakeGrammar)
        told["grammar"] = dataclasses.astuple(request.grammar.given)
    # The prompt is most of the line, and base64 needs no escapes: it is put in behind the encoder's back.
    rest, tokens = _ENCODE(told).encode(), binascii.b2a_base64(prompt, newline=False)
    return b'["run",%d,%b,"prompt":"%b"}]\n' % (attempt, rest[:-1], tokens)


def command(kind: str, *values: Any) -> bytes:
    return _ENCODE([kind, *values]).encode() + b"\n"


def grammar_of(told: Mapping[str, Any]) -> GrammarAsked | None:
    given = told.get("grammar")
    return None if given is None else GrammarAsked(*given)


def request_of(id: str, told: Mapping[str, Any], grammar: Callable[[], TokenGrammar] | None) -> Request:
    """The request of a `run`.

    Args:
      id: what the engine shall call it; grammar: compiled here from what `grammar_of` names.

    Raises:
      ValueError, TypeError: it is none.
    """
    fields = dict(told["sampling"])
    for name in ("stop", "stop_ids"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if "logit_bias" in fields:
        fields["logit_bias"] = {int(id): bias for id, bias in fields["logit_bias"].items()}
    return Request(
        client=told["client"],
        prompt_ids=_ids(told["prompt"]),
        sampling=Sampling(**fields),
        id=id,
        cache_salt=told.get("salt", ""),
        deadline_s=told.get("deadline_s"),
        priority=told.get("priority", 0),
        program=told.get("program", ""),
        grammar=grammar,
        resume_ids=_ids(told.get("resume", "")),
        forced_ids=_ids(told.get("forced", "")),
        keep=RequestKeep(**told["keep"]) if "keep" in told else None,
    )


def _tokens(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _ids(text: str) -> list[int]:
    return array("I", binascii.a2b_base64(text)).tolist()


def line(told: Line) -> bytes:
    return _ENCODE(told).encode() + b"\n"


# ---- bytes ----


class LineSplitter:
    """Whole lines out of pieces of any size; one of over `max_bytes` in parts, which are no messages."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterable[bytes]:
        *whole, rest = piece.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._rest, whole[0]])
            self._rest.clear()
            self._size = 0
        self._rest.append(rest)
        self._size += len(rest)
        if self._size > self._max_bytes:
            whole.append(b"".join(self._rest))
            self._rest.clear()
            self._size = 0
        return whole
