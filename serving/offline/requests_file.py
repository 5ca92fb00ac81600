"""Reads requests from a file of JSON lines.

    {"prompt": "def f(", "max_tokens": 32}                    text or token ids ("prompt_ids")
    {"id": "a1", "client": "b", "prompt_ids": [1, 2, 3], "temperature": 0.8, "seed": 7, "n": 2}
    {"messages": [{"role": "user", "content": "Hello"}]}      by the model's chat template
    {"custom_id": "c1", "body": {"messages": [...]}}          see `serving.offline.openai_batch`

Fields are those of `Request` and `Sampling`. The default `id` is the line's number, the default `max_tokens`
of messages CHAT_TOK.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.offline import chat_lines, openai_batch
from serving.request import Request, Sampling

SAMPLING = {field.name for field in dataclasses.fields(Sampling)}
PROMPTS = ("prompt", "prompt_ids", "messages")
REQUEST = {"id", "client", *PROMPTS, "cache_salt", "deadline_s", "priority"}

CHAT_TOK = 256

type Encode = Callable[[str], Sequence[int]]


def read(
    path: Path,
    encode: Encode | None,
    chat: chat_lines.RenderMessages | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[Request]:
    """Reads all requests of a file.

    Args:
      encode: text -> ids, for prompts that are text.
      chat: messages -> ids.
      defaults: sampling of lines that do not say otherwise.

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
            requests.append(parse(json.loads(line), str(number), encode, chat, defaults))
        except (ValueError, TypeError, RecursionError) as why:
            bad.append(f"line {number}: {why}")
    if bad:
        more = f" (and {len(bad) - 5} more)" if len(bad) > 5 else ""
        raise ValueError(f"{path} has bad requests: {'; '.join(bad[:5])}{more}")
    twice = [name for name, n in Counter(name for r in requests for name in r.names).items() if n > 1]
    if twice:
        raise ValueError(f"{path} asks for id {twice[0]!r} twice")
    return requests


def parse(
    fields: Any,
    id: str,
    encode: Encode | None,
    chat: chat_lines.RenderMessages | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Request:
    """One request from decoded JSON; a null field counts as absent.

    Raises:
      ValueError, TypeError: a field is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"is a {type(fields).__name__}, not an object")
    if openai_batch.is_batch_line(fields):
        fields = openai_batch.request_fields(fields)
    if unknown := sorted(fields.keys() - SAMPLING - REQUEST):
        raise ValueError(f"has unknown fields {', '.join(unknown)}")
    fields = {name: value for name, value in fields.items() if value is not None}
    sampling = dict(defaults or {}) | ({"max_tokens": CHAT_TOK} if "messages" in fields else {})
    sampling |= {name: value for name, value in fields.items() if name in SAMPLING}
    sampling |= {name: read(fields[name]) for name, read in _SPECIAL.items() if name in fields}
    rest = {
        name: fields[name] for name in ("client", "cache_salt", "deadline_s", "priority") if name in fields
    }
    return Request(
        prompt_ids=_prompt(fields, encode, chat),
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


def _prompt(
    fields: dict[str, Any], encode: Encode | None, chat: chat_lines.RenderMessages | None
) -> list[int]:
    if sum(name in fields for name in PROMPTS) != 1:
        raise ValueError("needs either prompt, prompt_ids or messages")
    if "prompt_ids" in fields:
        ids = fields["prompt_ids"]
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ValueError("prompt_ids must be a list of integers")
        return ids
    if "messages" in fields:
        messages = chat_lines.checked(fields["messages"])
        if chat is None:
            raise ValueError("has messages, but the model has no tokenizer; give prompt_ids")
        return chat(messages)
    if encode is None:
        raise ValueError("prompt is text, but the model has no tokenizer; give prompt_ids")
    if not isinstance(fields["prompt"], str):
        raise ValueError("prompt must be text")
    return list(encode(fields["prompt"]))
