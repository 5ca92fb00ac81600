"""What the ingress and a worker tell each other: lines of JSON, of plain numbers, texts and lists. Tokens of
prompts are 32-bit integers in base64: as numbers they would take longer than all else that a dispatch does.

To a worker go commands: `["run", attempt, request]`, `["stop", attempt]`, `["flush", number]`. From it come
objects of one key or more:

  * `hello`: once, first: what it can take.
  * `a`, `d`, `r`: what an engine step brought: `[attempt, extend_tok, hit_tok]` of outputs that began to run;
    `[attempt, number, ids, text, logprobs, end]` of deltas; `[attempt, why]` of requests it did not take.
  * `beat`: that it lives, and its counters.
  * `flushed`: `[number, done]`.
"""

import binascii
import dataclasses
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from serving.cluster.live_output import AttemptId, token_bytes
from serving.engine.stats import EngineStats
from serving.http.grammar import GrammarAsked, MakeGrammar
from serving.request import Delta, Logprob, Output, Request, RequestKeep, Sampling, TokenGrammar

type Line = dict[str, Any]

_USUAL = vars(Sampling())


# ---- to a worker ----


def run_command(attempt: AttemptId, request: Request, prompt: bytes) -> bytes:
    """The line that starts an attempt; `prompt`: see `token_bytes`."""
    sampling = request.sampling
    told: dict[str, Any] = {
        "client": request.client,
        "prompt": _tokens(prompt),
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
    return command("run", attempt, told)


def command(kind: str, *values: Any) -> bytes:
    return json.dumps([kind, *values], separators=(",", ":")).encode() + b"\n"


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


# ---- from a worker ----


def line(told: Line) -> bytes:
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"


def delta_row(attempt: AttemptId, number: int, delta: Delta) -> list[Any]:
    """A delta of an attempt, as a row of `d`."""
    output = delta.output
    end = None
    if output is not None:
        end = [output.finish_reason, output.stop, _logprob_rows(output.prompt_logprobs)]
    return [attempt, number, delta.ids, delta.text, _logprob_rows(delta.logprobs), end]


def delta_of(row: Sequence[Any]) -> Delta:
    """The delta of a row of `d`; whose it is, its attempt says."""
    _, _, ids, text, logprobs, end = row
    output = None if end is None else _output(*end)
    return Delta("", "", ids, output, text=text, logprobs=_logprobs(logprobs))


def _output(reason: Any, stop: int | str | None, prompt_logprobs: Sequence[Any]) -> Output:
    """What only the worker that ended an output knows of it."""
    return Output(
        id="",
        client="",
        output_ids=[],
        finish_reason=reason,
        prompt_tok=0,
        hit_tok=0,
        arrival_s=0.0,
        admit_s=0.0,
        first_token_s=0.0,
        finish_s=0.0,
        stop=stop,
        prompt_logprobs=_logprobs(prompt_logprobs),
    )


def _logprob_rows(logprobs: Sequence[Logprob]) -> Any:
    return [[p.id, p.logprob, p.top] for p in logprobs] if logprobs else 0


def _logprobs(rows: Any) -> tuple[Logprob, ...]:
    if not rows:
        return ()
    return tuple(Logprob(id, logprob, tuple((i, lp) for i, lp in top)) for id, logprob, top in rows)


def stats_of(told: Mapping[str, Any]) -> EngineStats:
    """The counters of a `beat`."""
    return EngineStats(**{**told, "pages": {kind: tuple(counts) for kind, counts in told["pages"].items()}})


# ---- bytes ----


class LineSplitter:
    """Whole lines out of pieces of any size."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterable[bytes]:
        *whole, self._rest = (self._rest + piece).split(b"\n")
        return whole
