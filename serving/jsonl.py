"""Requests from a file of JSON lines, answers to another: resumable, since an answer is a whole line or none.

    {"prompt": "def f(", "max_tokens": 32}                    text or token ids ("prompt_ids")
    {"id": "a1", "client": "b", "prompt_ids": [1, 2, 3], "temperature": 0.8, "seed": 7, "n": 2}

Fields are those of `Request` and `Sampling`. An `id` that is missing is the line's number. Answers come in
the order in which requests end.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from mixattn.files import write_text
from serving.request import Output, Request, Sampling

SAMPLING = {field.name for field in dataclasses.fields(Sampling)}
REQUEST = {"id", "client", "prompt", "prompt_ids", "salt", "deadline_s", "priority"}

type Encode = Callable[[str], Sequence[int]]


def read(path: Path, encode: Encode | None) -> list[Request]:
    """All requests of a file.

    Args:
      encode: text -> ids, for prompts that are text.

    Raises:
      ValueError: bad lines, each named by number; or an id that occurs twice.
    """
    requests: list[Request] = []
    bad: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            requests.append(parse(json.loads(line), str(number), encode))
        except (ValueError, TypeError) as why:
            bad.append(f"line {number}: {why}")
    if bad:
        more = f" (and {len(bad) - 5} more)" if len(bad) > 5 else ""
        raise ValueError(f"{path} has bad requests: {'; '.join(bad[:5])}{more}")
    seen: dict[str, None] = {}
    for request in requests:
        if request.id in seen:
            raise ValueError(f"{path} asks for id {request.id!r} twice")
        seen[request.id] = None
    return requests


def parse(fields: Any, id: str, encode: Encode | None) -> Request:
    """One request of plain JSON values.

    Raises:
      ValueError, TypeError: a field is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"is a {type(fields).__name__}, not an object")
    if unknown := sorted(fields.keys() - SAMPLING - REQUEST):
        raise ValueError(f"has unknown fields {', '.join(unknown)}")
    sampling = {name: value for name, value in fields.items() if name in SAMPLING}
    for name in ("stop", "stop_ids"):
        if name in sampling:
            value = sampling[name]
            sampling[name] = (value,) if isinstance(value, str) else tuple(value)
    if "logit_bias" in sampling:
        sampling["logit_bias"] = {int(k): float(v) for k, v in sampling["logit_bias"].items()}
    rest = {name: fields[name] for name in ("salt", "deadline_s", "priority") if name in fields}
    return Request(
        client=str(fields.get("client", "default")),
        prompt_ids=_prompt(fields, encode),
        sampling=Sampling(**sampling),
        id=str(fields.get("id", id)),
        **rest,
    )


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


class Answers:
    """The file of answers, one line an output; opening it again goes on where it ended.

    A line that an interruption cut short is dropped, and so are the outputs of a request that has only some
    of its `n`.

    Attributes:
      missing: the requests still to be answered.

    Raises:
      ValueError: the file holds something else.
    """

    def __init__(self, path: Path, requests: Iterable[Request]):
        text = path.read_text() if path.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        ids = [_id(path, number, line) for number, line in enumerate(lines, 1)]
        has, wants = Counter(ids), {r.id: r.sampling.n for r in requests}
        whole = "".join(line for id, line in zip(ids, lines) if has[id] >= wants.get(id, 1))
        self.missing = [r for r in requests if has[r.id] < r.sampling.n]
        if whole != text:
            write_text(path, whole)
        self._file: IO[str] = path.open("a")

    def write(self, output: Output) -> None:
        self._file.write(json.dumps(dataclasses.asdict(output)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _id(path: Path, number: int, line: str) -> str:
    try:
        return json.loads(line)["id"]
    except (ValueError, KeyError, TypeError) as why:
        raise ValueError(f"{path} line {number} is not an answer of an earlier run") from why
