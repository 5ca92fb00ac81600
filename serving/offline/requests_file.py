"""Reads requests from a file of JSON lines.

    {"prompt": "def f(", "max_tokens": 32}                    text or token ids ("prompt_ids")
    {"id": "a1", "client": "b", "prompt_ids": [1, 2, 3], "temperature": 0.8, "seed": 7, "n": 2}
    {"messages": [{"role": "user", "content": "Hello"}]}      by the model's chat template
    {"custom_id": "c1", "body": {"messages": [...]}}          see `serving.offline.openai_batch`

Fields are those of `Request` and `Sampling`. The default `id` is the line's number, the default `max_tokens`
of messages CHAT_TOK. `keep` is an object with the fields of `RequestKeep`. `metadata` is carried into the
answer. A `priority` is as in vLLM: smaller first.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.offline import chat_lines, openai_batch
from serving.request import Request, RequestKeep, Sampling, is_text

SAMPLING = {field.name for field in dataclasses.fields(Sampling)}
PROMPTS = ("prompt", "prompt_ids", "messages")
REQUEST = {"id", "client", *PROMPTS, "cache_salt", "deadline_s", "priority", "metadata", "keep"}

CHAT_TOK = 256

type Encode = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class AskedLine:
    """One line of the file.

    Attributes:
      number: from 1 up.
      id: what its answers are called.
      request: None if the line is bad.
      error: why it is bad.
      carried: what its answers say again: the prompt as it was given, `metadata`, and `custom_id`.
    """

    number: int
    id: str
    request: Request | None
    error: str = ""
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
    lines = read_lines(path, encode, chat, defaults)
    refuse_bad(path, lines)
    return [line.request for line in lines if line.request is not None]


def refuse_bad(path: Path, lines: Sequence[AskedLine]) -> None:
    """Raises ValueError that names the bad lines, if there are any."""
    if bad := [f"line {line.number}: {line.error}" for line in lines if line.error]:
        more = f" (and {len(bad) - 5} more)" if len(bad) > 5 else ""
        raise ValueError(f"{path} has bad requests: {'; '.join(bad[:5])}{more}")


def read_lines(
    path: Path,
    encode: Encode | None,
    chat: chat_lines.RenderMessages | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[AskedLine]:
    """All lines of a file, the bad ones with the reason; arguments as `read`.

    Raises:
      ValueError: it is not text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as why:
        raise ValueError(f"{path} is not UTF-8: {why}") from why
    lines: list[AskedLine] = []
    taken: dict[str, int] = {}
    # Not `splitlines`, which also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            lines.append(_unique(_line(line, number, encode, chat, defaults), taken))
    return lines


def _line(
    line: str,
    number: int,
    encode: Encode | None,
    chat: chat_lines.RenderMessages | None,
    defaults: Mapping[str, Any] | None,
) -> AskedLine:
    try:
        fields = json.loads(line)
        if not is_text(json.dumps(fields, ensure_ascii=False)):
            raise ValueError("holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
        request = parse(fields, str(number), encode, chat, defaults)
    except RecursionError:
        return AskedLine(number, f"line-{number}", None, "is nested too deeply")
    except (ValueError, TypeError) as why:
        return AskedLine(number, f"line-{number}", None, " ".join(str(why).split()))
    return AskedLine(number, request.id, request, carried=_carried(fields))


def _unique(line: AskedLine, taken: dict[str, int]) -> AskedLine:
    """The line, or an error if an output of an earlier line is called the same; notes what is `taken`."""
    if line.request is None:
        return line
    if twice := [name for name in line.request.names if name in taken]:
        why = f"asks for id {twice[0]!r} twice, first in line {taken[twice[0]]}"
        return AskedLine(line.number, f"line-{line.number}", None, why)
    taken.update(dict.fromkeys(line.request.names, line.number))
    return line


def _carried(fields: Mapping[str, Any]) -> dict[str, Any]:
    inner = fields.get("body") or fields
    carried = {name: inner[name] for name in (*PROMPTS, "metadata") if inner.get(name) is not None}
    return carried | ({"custom_id": fields["custom_id"]} if "custom_id" in fields else {})


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
    rest = {name: fields[name] for name in ("client", "cache_salt", "deadline_s") if name in fields}
    if "keep" in fields:
        rest["keep"] = RequestKeep.read(fields["keep"])
    if "priority" in fields:
        rest["priority"] = _priority(fields["priority"])
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


def _priority(value: Any) -> int:
    """Smaller first in a file, larger first in the engine."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"priority must be a whole number, not {value!r}")
    return -value


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
