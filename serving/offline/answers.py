"""The file of answers of an offline run: one JSON line per output, in the order in which outputs finish.

A line is written whole, so a run that is stopped can be resumed. Each line names, in a few characters, the
request and the model that it came from (`serving.offline.fingerprints`): an answer to another question is not
kept, and a file of another model is refused.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixattn.tools.exclusive import open_exclusive
from mixattn.tools.files import write_text
from serving.offline import fingerprints
from serving.request import Output, Request

FAILED = ("error", "refused")  # tried again by the next run


class _Kept(NamedTuple):
    """A line of an earlier run."""

    id: str
    answer: Mapping[str, Any]
    line: str


class Answers:
    """The file of answers; opening it again resumes behind its last whole answer.

    Dropped are: a last line that was cut short, the outputs of a request that has only some of its `n`,
    answers that failed, and answers to a request that has changed since. While the file is open no other run
    can open it.

    Args:
      model: fingerprint of the model; "" is not compared.
      carried: by id, what is written into a request's answers besides.

    Attributes:
      missing: the requests that have no answer yet.
      changed: how many of them had one, when they or their sampling were others.

    Raises:
      ValueError: the file holds something else, or answers of another model; it is left unchanged. Or another
        run writes to it.
    """

    def __init__(
        self,
        path: Path,
        requests: Iterable[Request],
        *,
        model: str = "",
        carried: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file; answers go to one that can be read again")
        requests, busy = list(requests), f"{path} is being written by another run"
        self._model, self._carried = model, carried or {}
        self._marks = {r.id: fingerprints.of_request(r) for r in requests}
        self._path, self._file = path, open_exclusive(path, busy)
        try:
            lines, torn = _lines(path)
            good = self._good(lines, {r.id: r for r in requests})
            found = Counter(kept.id for kept in good)
            wanted = {r.id: r.sampling.n for r in requests}
            complete = [kept.line for kept in good if found[kept.id] >= wanted.get(kept.id, 1)]
            self.missing = [r for r in requests if found[r.id] < r.sampling.n]
            if torn or len(complete) < len(lines):
                write_text(path, "".join(complete))
                self._file.close()
                self._file = open_exclusive(path, busy)
        except BaseException:
            self._file.close()
            raise

    def _good(self, lines: list[_Kept], requests: Mapping[str, Request]) -> list[_Kept]:
        """The answers that still answer something; notes how many `changed`."""
        answers = [kept for kept in lines if kept.answer["finish_reason"] not in FAILED]
        others = {kept.answer.get("model", self._model) for kept in answers} - {self._model}
        if self._model and others:
            raise ValueError(
                f"{self._path} holds answers of another model ({min(map(str, others))}, not {self._model}); "
                "name another --out, or remove it"
            )
        good = [kept for kept in answers if self._answers_it(kept, requests.get(kept.id))]
        self.changed = len({kept.id for kept in answers} - {kept.id for kept in good})
        return good

    def _answers_it(self, kept: _Kept, request: Request | None) -> bool:
        """A line of an older version has no fingerprint; it must at least be as long."""
        if request is None:
            return True
        mark = kept.answer.get("fingerprint")
        if mark is None:
            return bool(kept.answer.get("prompt_tok") == len(request.prompt_ids))
        return bool(mark == self._marks[kept.id])

    def write(self, output: Output) -> None:
        """Appends one line.

        Raises:
          OSError: the write failed; names the file. A torn line is dropped when the file is opened again.
        """
        marks = {"fingerprint": self._marks.get(output.id, ""), "model": self._model}
        self._append(dataclasses.asdict(output) | dict(self._carried.get(output.id, {})) | marks)

    def write_error(self, id: str, line: int, error: str) -> None:
        """Appends the line of a request that could not be asked."""
        self._append(
            {"id": id, "index": 0, "output_ids": [], "finish_reason": "refused", "line": line, "error": error}
        )

    def close(self) -> None:
        self._file.close()

    def _append(self, answer: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(answer, allow_nan=False)
        except ValueError:  # JSON has no infinity
            text = json.dumps(_finite(answer), allow_nan=False)
        line = memoryview((text + "\n").encode())
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as why:
            raise OSError(why.errno, why.strerror, str(self._path)) from why


def _finite(value: Any) -> Any:
    """The same with null for numbers that are none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _lines(path: Path) -> tuple[list[_Kept], bool]:
    """The answers of an earlier run, and whether a torn line follows them."""
    *lines, rest = path.read_bytes().decode("utf-8", "replace").split("\n")
    prefix = '{"id": '
    if not (rest.startswith(prefix) or prefix.startswith(rest)):
        raise _not_an_answer(path, len(lines) + 1)
    return [_kept(path, number, line) for number, line in enumerate(lines, 1)], bool(rest)


def _kept(path: Path, number: int, line: str) -> _Kept:
    try:
        answer = json.loads(line)
        id, _, _ = answer["id"], answer["output_ids"], answer["finish_reason"]
        if not isinstance(id, str):
            raise TypeError(f"the id is {id!r}")
        return _Kept(id, answer, line + "\n")
    except (ValueError, KeyError, TypeError, RecursionError) as why:
        raise _not_an_answer(path, number) from why


def _not_an_answer(path: Path, number: int) -> ValueError:
    return ValueError(f"{path} line {number} is not an answer of an earlier run")
