"""The file of answers of an offline run: one JSON line per output, in the order in which outputs finish.

A line is written whole, so a run that is stopped can be resumed.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mixattn.tools.exclusive import open_exclusive
from mixattn.tools.files import write_text
from serving.request import Output, Request


class Answers:
    """The file of answers; opening it again resumes behind its last whole answer.

    A last line that was cut short is dropped, and so are the outputs of a request that has only some of its
    `n`. While the file is open no other run can open it.

    Attributes:
      missing: the requests that have no answer yet.

    Raises:
      ValueError: the file holds something else, which is left unchanged, or another run writes to it.
    """

    def __init__(self, path: Path, requests: Iterable[Request]) -> None:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file; answers go to one that can be read again")
        requests, busy = list(requests), f"{path} is being written by another run"
        self._path, self._file = path, open_exclusive(path, busy)
        try:
            lines, torn = _lines(path)
            found, wanted = Counter(id for id, _ in lines), {r.id: r.sampling.n for r in requests}
            complete = [line for id, line in lines if found[id] >= wanted.get(id, 1)]
            self.missing = [r for r in requests if found[r.id] < r.sampling.n]
            if torn or len(complete) < len(lines):
                write_text(path, "".join(complete))
                self._file.close()
                self._file = open_exclusive(path, busy)
        except BaseException:
            self._file.close()
            raise

    def write(self, output: Output) -> None:
        """Appends one line.

        Raises:
          OSError: the write failed; names the file. A torn line is dropped when the file is opened again.
        """
        line = memoryview((json.dumps(dataclasses.asdict(output)) + "\n").encode())
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as why:
            raise OSError(why.errno, why.strerror, str(self._path)) from why

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> tuple[list[tuple[str, str]], bool]:
    """The (id, line) pairs of an earlier run, and whether a torn line follows them."""
    *lines, rest = path.read_bytes().decode("utf-8", "replace").split("\n")
    prefix = '{"id": '
    if not (rest.startswith(prefix) or prefix.startswith(rest)):
        raise _not_an_answer(path, len(lines) + 1)
    return [(_id(path, number, line), line + "\n") for number, line in enumerate(lines, 1)], bool(rest)


def _id(path: Path, number: int, line: str) -> str:
    try:
        answer = json.loads(line)
        id, _, _ = answer["id"], answer["output_ids"], answer["finish_reason"]
        return id
    except (ValueError, KeyError, TypeError) as why:
        raise _not_an_answer(path, number) from why


def _not_an_answer(path: Path, number: int) -> ValueError:
    return ValueError(f"{path} line {number} is not an answer of an earlier run")
