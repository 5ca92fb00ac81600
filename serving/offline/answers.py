"""The file of answers of an offline run, one JSON line an output, in the order in which they end.

Resumable, since an answer is a whole line or none.
"""

import dataclasses
import fcntl
import io
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mixattn.tools.files import write_text
from serving.request import Output, Request


class Answers:
    """The file of answers, one line an output; opening it again goes on where it ended.

    A line that an interruption cut short is dropped, and so are the outputs of a request that has only some
    of its `n`. While it is open no other run can open it.

    Attributes:
      missing: the requests still to be answered.

    Raises:
      ValueError: the file holds something else, which is left as it is, or another run writes to it.
    """

    def __init__(self, path: Path, requests: Iterable[Request]):
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file; answers go to one that can be read again")
        self._path, self._file = path, _held(path)
        try:
            lines, torn = _lines(path)
            has, wants = Counter(id for id, _ in lines), {r.id: r.sampling.n for r in requests}
            whole = [line for id, line in lines if has[id] >= wants.get(id, 1)]
            self.missing = [r for r in requests if has[r.id] < r.sampling.n]
            if torn or len(whole) < len(lines):
                write_text(path, "".join(whole))
                self._file.close()
                self._file = _held(path)
        except BaseException:
            self._file.close()
            raise

    def write(self, output: Output) -> None:
        """Adds a line. OSError names the file; what a full disk cuts short is dropped at the next opening."""
        line = memoryview((json.dumps(dataclasses.asdict(output)) + "\n").encode())
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as why:
            raise OSError(why.errno, why.strerror, str(self._path)) from why

    def close(self) -> None:
        self._file.close()


def _held(path: Path) -> io.FileIO:
    """The file, open for more lines and locked; nothing waits in a buffer, so closing cannot fail."""
    file = io.FileIO(str(path), "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(file.fileno()), path.stat())  # not one that was just replaced
    except BlockingIOError:
        held = False
    if not held:
        file.close()
        raise ValueError(f"{path} is being written by another run")
    return file


def _lines(path: Path) -> tuple[list[tuple[str, str]], bool]:
    """The answers of an earlier run, each with its id, and whether a torn line follows them."""
    *whole, rest = path.read_bytes().decode("utf-8", "replace").split("\n")
    begin = '{"id": '
    if not (rest.startswith(begin) or begin.startswith(rest)):
        raise _not_ours(path, len(whole) + 1)
    return [(_id(path, number, line), line + "\n") for number, line in enumerate(whole, 1)], bool(rest)


def _id(path: Path, number: int, line: str) -> str:
    try:
        answer = json.loads(line)
        id, _, _ = answer["id"], answer["output_ids"], answer["finish_reason"]
        return id
    except (ValueError, KeyError, TypeError) as why:
        raise _not_ours(path, number) from why


def _not_ours(path: Path, number: int) -> ValueError:
    return ValueError(f"{path} line {number} is not an answer of an earlier run")
