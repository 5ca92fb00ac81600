"""Reads requests from a file of JSON lines.

    {"prompt": "def f(", "max_tokens": 32}                    text or token ids ("prompt_ids")
    {"id": "a1", "client": "b", "prompt_ids": [1, 2, 3], "temperature": 0.8, "seed": 7, "n": 2}

Fields are those of `Request` and `Sampling`. The default `id` is the line's number.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.request import Request, Sampling

SAMPLING = {field.name for field in dataclasses.fields(Sampling)}
REQUEST = {"id", "client", "prompt", "prompt_ids", "cache_salt", "deadline_s", "priority"}

type Encode = Callable[[str], Sequence[int]]


def read(path: Path, encode: Encode | None) -> list[Request]:
    """Reads all requests of a file.

    Args:
      encode: text -> ids, for prompts that are text.

    Raises:
      ValueError: bad lines, each named by number; or an id that occurs twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as why:
        raise ValueError(f"{path} is not UTF-8: {why}") from why
    requests: list[Request] = []
    bad: list[str] = []
    # Not `splitlines`, which also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            requests.append(parse(json.loads(line), str(number), encode))
        except (ValueError, TypeError, RecursionError) as why:
            bad.append(f"line {number}: {why}")
    if bad:
        more = f" (and {len(bad) - 5} more)" if len(bad) > 5 else ""
        raise ValueError(f"{path} has bad requests: {'; '.join(bad[:5])}{more}")
    twice = [name for name, n in Counter(name for r in requests for name in r.names).items() if n > 1]
    if twice:
        raise ValueError(f"{path} asks for id {twice[0]!r} twice")
    return requests


def parse(fields: Any, id: str, encode: Encode | None) -> Request:
    """One request from decoded JSON; a null field counts as absent.

    Raises:
      ValueError, TypeError: a field is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"is a {type(fields).__name__}, not an object")
    if unknown := sorted(fields.keys() - SAMPLING - REQUEST):
        raise ValueError(f"has unknown fields {', '.join(unknown)}")
    fields = {name: value for name, value in fields.items() if value is not None}
    sampling = {name: value for name, value in fields.items() if name in SAMPLING}
    sampling |= {name: read(fields[name]) for name, read in _SPECIAL.items() if name in fields}
    rest = {
        name: fields[name] for name in ("client", "cache_salt", "deadline_s", "priority") if name in fields
    }
    return Request(
        prompt_ids=_prompt(fields, encode),
        sampling=Sampling(**sampling),
        id=_name(fields.get("id", id)),
        **{"client": "default"} | rest,
    )


def _name(id: Any) -> str:
    if id == "" or isinstance(id, bool) or not isinstance(id, str | int):
        raise ValueError(f"id must be a text or a whole number, not {id!r}")
    return str(id)


def _stop(value: Any) -> tuple[str, ...]:
    if not isinstance(value, str | list):
        raise ValueError(f"stop must be a text or a list of texts, not {value!r}")
    return (value,) if isinstance(value, str) else tuple(value)


def _stop_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"stop_ids must be a list, not {value!r}")
    return tuple(value)


def _logit_bias(value: Any) -> dict[int, float]:
    """JSON object keys are strings; converts them to token ids."""
    if not isinstance(value, dict):
        raise ValueError(f"logit_bias must be an object of token ids, not a {type(value).__name__}")
    try:
        return {int(id): bias for id, bias in value.items()}
    except ValueError as why:
        raise ValueError(f"logit_bias must be an object of token ids: {why}") from why


_SPECIAL: dict[str, Callable[[Any], Any]] = {"stop": _stop, "stop_ids": _stop_ids, "logit_bias": _logit_bias}


def _prompt(fields: dict[str, Any], encode: Encode | None) -> list[int]:
    if ("prompt" in fields) == ("prompt_ids" in fields):
        raise ValueError("needs either prompt or prompt_ids")
    if "prompt_ids" in fields:
        ids = fields["prompt_ids"]
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ValueError("prompt_ids must be a list of integers")
        return ids
    if encode is None:
        raise ValueError("prompt is text, but the model has no tokenizer; give prompt_ids")
    if not isinstance(fields["prompt"], str):
        raise ValueError("prompt must be text")
    return list(encode(fields["prompt"]))
