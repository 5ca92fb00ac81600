"""Conversations of ShareGPT or LMSYS: a JSON list, or one JSON object per line, of turns without times.

Every turn of a user and the answer after it is one request of a session whose prompt grows. Lengths are
*estimates*: characters / 4, at least 1. Sessions arrive at random; a turn follows the answer before it after
a random time to think. The text is not kept.

    {"id": .., "conversations": [{"from": "human", "value": ..}, {"from": "gpt", "value": ..}, ..]}
    {"conversation_id": .., "model": .., "conversation": [{"role": "user", "content": ..}, ..]}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.sim.traces.trace import TraceRow, lines, open_text

CHARACTERS_PER_TOKEN = 4
USERS = {"human", "user"}
ANSWERS = {"gpt", "chatgpt", "bing", "bard", "assistant", "model"}


def read(path: str | Path) -> Iterator[TraceRow]:
    """Yields the rows. Raises ValueError with place and field of a bad one."""
    for where, one in _conversations(path):
        try:
            yield from _turns(one, where)
        except ValueError as why:
            raise ValueError(f"{path} {where}: {why}") from why


def _conversations(path: str | Path) -> Iterator[tuple[str, Any]]:
    first = next((text.lstrip()[:1] for _, text in lines(path)), "")
    if first == "[":
        try:
            with open_text(path) as file:
                found = json.load(file)
        except (ValueError, RecursionError) as why:
            raise ValueError(f"{path}: not JSON: {why}") from why
        for number, one in enumerate(found, 1):
            yield f"item {number}", one
        return
    for number, text in lines(path):
        try:
            yield f"line {number}", json.loads(text)
        except (ValueError, RecursionError) as why:
            raise ValueError(f"{path} line {number}: not JSON: {why}") from why


def _turns(one: Any, where: str) -> Iterator[TraceRow]:
    if not isinstance(one, dict):
        raise ValueError("not a JSON object")
    name = next((n for n in ("conversations", "conversation") if n in one), None)
    if name is None:
        raise ValueError("no field conversations or conversation")
    turns = one[name]
    if not isinstance(turns, list):
        raise ValueError(f"{name} is {str(turns)[:60]!r}, not a list of turns")
    columns = {key: str(value) for key, value in one.items() if isinstance(value, str | int)}
    session = f"{where} {one.get('id', one.get('conversation_id', ''))}"
    asked = 0
    for at, turn in enumerate(turns):
        who, tokens = _turn(turn, f"{name}[{at}]")
        if who in ANSWERS:
            if asked:  # an answer to nothing, as where a conversation was cut, is context of nothing
                yield TraceRow(where, None, asked, tokens, tokens, columns, session=session)
            asked = 0
        else:  # users, and system prompts, which stand before the first question
            asked += tokens


def _turn(turn: Any, name: str) -> tuple[str, int]:
    """Who speaks, and the tokens."""
    if not isinstance(turn, dict):
        raise ValueError(f"{name} is {str(turn)[:60]!r}, not a turn")
    who, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(who, str):
        raise ValueError(f"{name} names nobody in from or role")
    if not isinstance(text, str):
        raise ValueError(f"{name} has {str(text)[:60]!r} for value or content, not text")
    return who.lower(), -(-len(text) // CHARACTERS_PER_TOKEN)
