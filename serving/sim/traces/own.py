"""Our own format: JSON lines with prefixes, sessions, cancels, deadlines, priorities, salts, programs,
weights.

See FORMATS.md beside this file for every field.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.kvcache.tokens import TokenIds, TokenSequence
from serving.sim.synthetic_tokens import TokenSegment
from serving.sim.traces.trace import TraceRow, lines, number, whole

NEEDED = ("id", "client", "output_len")
TEXTS = ("session", "after", "salt", "program")
KNOWN = {
    *("id", "client", "arrival_s", "prompt", "prompt_len", "prefix", "output_len", "max_output", "weight"),
    *("session", "after", "think_s", "cancel_s", "deadline_s", "priority", "salt", "program"),
}


def read(path: str | Path) -> Iterator[TraceRow]:
    """Yields the rows; one bad line rejects the whole file.

    Raises:
      ValueError: a bad line, named with field and value.
    """
    seen: set[str] = set()
    weights: dict[str, float] = {}
    sessions: set[str] = set()
    for line, text in lines(path):
        try:
            row = _row(json.loads(text), f"line {line}", sessions)
            if row.id in seen:
                raise ValueError(f"the id {row.id!r} appears twice")
            if row.after is not None and row.after not in seen:
                raise ValueError(f"after is {row.after!r}, which no line before it has as id")
            client = row.columns["client"]
            if weights.setdefault(client, row.weight) != row.weight:
                raise ValueError(
                    f"client {client!r} has weight {row.weight} here and {weights[client]} before"
                )
        except (ValueError, RecursionError) as why:
            raise ValueError(f"{path} line {line}: {why}") from why
        seen.add(row.id)
        yield row


def _row(row: Any, where: str, sessions: set[str]) -> TraceRow:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if unknown := sorted(set(row) - KNOWN):
        raise ValueError(f"unknown field {', '.join(unknown)}; known: {', '.join(sorted(KNOWN))}")
    if ("prompt" in row) == ("prompt_len" in row):
        raise ValueError("give either prompt or prompt_len")
    if missing := [name for name in NEEDED if name not in row]:
        raise ValueError(f"{missing[0]!r} is missing")
    for name in TEXTS:
        if not isinstance(row.get(name, ""), str):
            raise ValueError(f"{name} is {row[name]!r}, not text")
    output = _whole(row, "output_len", 1)
    most = _whole(row, "max_output", 1) if "max_output" in row else output
    if most < output:
        raise ValueError(f"output_len is {output}, above max_output {most}")
    weight = _number(row, "weight", 0.0) if "weight" in row else 1.0
    if not weight > 0:
        raise ValueError(f"weight is {weight}; it must be above 0")
    segments, tokens, prompt = _prompt(row, str(row["id"]))
    made = TraceRow(
        where,
        _arrival(row, sessions),
        prompt,
        output,
        most,
        columns={"client": str(row["client"])},
        segments=segments,
        tokens=tokens,
        id=str(row["id"]),
        weight=weight,
        session=row.get("session"),
        after=row.get("after"),
        salt=row.get("salt", ""),
        program=row.get("program", ""),
    )
    for name in ("think_s", "cancel_s", "deadline_s"):
        if name in row:
            setattr(made, name, _number(row, name, 0.0))
    if "priority" in row:
        made.priority = _whole(row, "priority", -(2**20))
        if made.priority > 2**20:
            raise ValueError(f"priority is {made.priority}; at most 2**20 either way")
    return made


def _arrival(row: dict[str, Any], sessions: set[str]) -> float | None:
    """When it arrives; None if it follows another. Adds its session to those begun."""
    session, begins = row.get("session"), True
    if session is not None:
        begins = session not in sessions
        sessions.add(session)
        if "prompt" in row:
            raise ValueError("prompts of a session are given by prompt_len: its outputs have no ids")
    if "after" in row and session is not None:
        raise ValueError("after and session exclude each other: turns of a session follow one another")
    if "after" in row or not begins:
        if "arrival_s" in row:
            raise ValueError("arrival_s is given, but the request follows another; give think_s")
        return None
    if "arrival_s" not in row:
        raise ValueError("'arrival_s' is missing")
    return _number(row, "arrival_s", 0.0)


def _prompt(row: dict[str, Any], id: str) -> tuple[list[TokenSegment] | None, TokenSequence | None, int]:
    """Its segments or its token ids, and their number."""
    if "prompt" in row:
        ids = row["prompt"]
        if not isinstance(ids, list) or not ids or not all(type(t) is int and 0 <= t < 2**31 for t in ids):
            raise ValueError("prompt must be a list of at least one token id")
        return None, TokenIds(ids), len(ids)
    total, shared, segments = _whole(row, "prompt_len", 1), 0, []
    prefix = row.get("prefix", [])
    if not isinstance(prefix, list) or not all(isinstance(p, list) and len(p) == 2 for p in prefix):
        raise ValueError("a prefix is a list of [key, length] with lengths of at least 1")
    for key, length in prefix:
        if type(length) is not int or length < 1 or not isinstance(key, str | int):
            raise ValueError("a prefix is a list of [key, length] with lengths of at least 1")
        segments.append((str(key), length))
        shared += length
    if shared > total:
        raise ValueError(f"the prefix has {shared} tokens, prompt_len is {total}")
    return [*segments, (("own", id), total - shared)], None, total


def _number(row: dict[str, Any], name: str, minimum: float) -> float:
    if isinstance(row[name], str):
        raise ValueError(f"{name} is {row[name]!r}, not a number")
    return number(row[name], name, minimum)


def _whole(row: dict[str, Any], name: str, minimum: int) -> int:
    if isinstance(row[name], str):
        raise ValueError(f"{name} is {row[name]!r}, not a number")
    return whole(row[name], name, minimum)
