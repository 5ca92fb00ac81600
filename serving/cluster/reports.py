"""What a worker tells the ingress, written and read. Reading trusts nothing: whoever runs there, what is no
report is refused as a whole, before any of it counts. See `messages` for the parts.
"""

import dataclasses
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from serving.cluster.live_output import AttemptId
from serving.engine.stats import EngineCounters, EngineStats
from serving.request import Delta, FinishReason, Logprob, Output

NO_TOKEN = 2**32  # no token is named so, whatever the vocabulary
ENDS = set(get_args(FinishReason.__value__)) - {"lost"}

_NUMBERS = [
    *(f.name for f in dataclasses.fields(EngineCounters) if f.name != "finished"),
    *("programs", "bytes_held", "running", "waiting", "slots"),
]


def delta_row(attempt: AttemptId, number: int, delta: Delta) -> list[Any]:
    """A delta of an attempt, as a row of `d`."""
    output = delta.output
    end = None
    if output is not None:
        end = [output.finish_reason, output.stop, _logprob_rows(output.prompt_logprobs)]
    return [attempt, number, delta.ids, delta.text, _logprob_rows(delta.logprobs), end]


def delta_of(row: Sequence[Any], vocab: int = NO_TOKEN) -> tuple[AttemptId, int, Delta]:
    """Attempt, number and delta of a row of `d`; whose it is, its attempt says.

    Raises:
      ValueError: it is no such row, or names a token beyond `vocab`.
    """
    attempt, number, ids, text, logprobs, end = row
    if type(attempt) is not int or type(number) is not int or type(text) is not str or type(ids) is not list:
        raise ValueError(f"a delta of {reprlib.repr(row)}")
    for id in ids:
        if type(id) is not int or not 0 <= id < vocab:
            raise ValueError(f"token {reprlib.repr(id)} of a vocabulary of {vocab}")
    output = None
    if end is not None:
        reason, stop, prompt_logprobs = end
        output = _output(reason, stop, prompt_logprobs, vocab)
    return attempt, number, Delta("", "", ids, output, text=text, logprobs=_logprobs(logprobs, vocab))


def _output(reason: Any, stop: int | str | None, prompt_logprobs: Sequence[Any], vocab: int) -> Output:
    """What only the worker that ended an output knows of it."""
    if reason not in ENDS:
        raise ValueError(f"an end by {reprlib.repr(reason)}")
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
        prompt_logprobs=_logprobs(prompt_logprobs, vocab),
    )


def _logprob_rows(logprobs: Sequence[Logprob]) -> Any:
    return [[p.id, p.logprob, p.top] for p in logprobs] if logprobs else 0


def _logprobs(rows: Any, vocab: int) -> tuple[Logprob, ...]:
    if not rows:
        return ()
    made = tuple(Logprob(id, logprob, tuple((i, lp) for i, lp in top)) for id, logprob, top in rows)
    for token in made:
        for id, value in ((token.id, token.logprob), *token.top):
            if type(id) is not int or not 0 <= id < vocab or type(value) not in (int, float):
                raise ValueError(f"a log-probability of {reprlib.repr((id, value))}")
    return made


@dataclass(slots=True)
class WorkerBeat:
    """A sign of life: how long the running step has taken, why it can serve no longer, its counters."""

    stuck_s: float
    failed: str | None
    stats: EngineStats | None


@dataclass(slots=True)
class WorkerReport:
    """A line of a worker, checked; see the module for what the parts are."""

    hello: dict[str, Any] | None = None
    admitted: list[tuple[AttemptId, int, int]] = field(default_factory=list)
    deltas: list[tuple[AttemptId, int, Delta]] = field(default_factory=list)
    refused: list[tuple[AttemptId, str]] = field(default_factory=list)
    beat: WorkerBeat | None = None
    flushed: tuple[int, bool] | None = None


def report_of(text: bytes, vocab: int = NO_TOKEN) -> WorkerReport:
    """What a line says.

    Args:
      vocab: tokens that there are.

    Raises:
      ValueError: it is no line of a worker.
    """
    try:
        told = json.loads(text)
        if type(told) is not dict:
            raise ValueError("no object")
        report = WorkerReport()
        if "d" in told:
            report.deltas = [delta_of(row, vocab) for row in told["d"]]
        if "a" in told:
            report.admitted = [_counts(*row) for row in told["a"]]
        if "r" in told:
            report.refused = [(_count(attempt), str(why)) for attempt, why in told["r"]]
        if "beat" in told:
            report.beat = _beat(**told["beat"])
        if "flushed" in told:
            number, done = told["flushed"]
            report.flushed = _count(number), bool(done)
        if "hello" in told:
            report.hello = _hello(told["hello"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as why:
        raise ValueError(f"{reprlib.repr(text)}: {why}") from None
    return report


def session_of(text: bytes) -> int:
    """The session of a greeting; 0 for what is none."""
    try:
        return _count(json.loads(text)["hello"]["session"])
    except (ValueError, TypeError, LookupError):
        return 0


def _hello(told: dict[str, Any]) -> dict[str, Any]:
    for name in ("session", "pid", "slots"):
        if _count(told[name]) < 1:
            raise ValueError(f"{name} is {told[name]}")
    return told


def _beat(stuck_s: float, failed: str | None, stats: Mapping[str, Any] | None) -> WorkerBeat:
    return WorkerBeat(
        _number(stuck_s), None if failed is None else str(failed), None if stats is None else stats_of(stats)
    )


def _counts(attempt: Any, extend_tok: Any, hit_tok: Any) -> tuple[AttemptId, int, int]:
    return _count(attempt), _count(extend_tok), _count(hit_tok)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{reprlib.repr(value)} is no count")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{reprlib.repr(value)} is no number")
    return float(value)


def stats_of(told: Mapping[str, Any]) -> EngineStats:
    """The counters of a `beat`. Raises ValueError, TypeError or LookupError for what is none."""
    pages = {kind: tuple(map(_count, counts)) for kind, counts in told["pages"].items()}
    if any(len(counts) != 4 for counts in pages.values()):
        raise ValueError(f"pages are {reprlib.repr(pages)}")
    made = EngineStats(**{**told, "pages": pages})
    for name in _NUMBERS:
        _number(getattr(made, name))
    for count in made.finished.values():
        _count(count)
    return made
