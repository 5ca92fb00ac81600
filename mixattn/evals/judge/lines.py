"""JSON Lines files that survive kill -9: a line is appended whole, a torn last line is cut off.

One process appends to a file at a time; the system releases the lock however that process ends.
"""

import json
import os
from pathlib import Path
from typing import Any, Self

from mixattn.tools.exclusive import open_exclusive

Row = dict[str, Any]


def read_rows(path: Path, *, torn_end: bool = False) -> list[Row]:
    """The objects of a file, blank lines left out. A missing file has none.

    Args:
      torn_end: leave out a last line without newline, which a killed process may have left.

    Raises:
      ValueError: a line is torn or not a JSON object; it is named by its number, from 1.
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if torn_end else lines, 1):
        if line.strip():
            rows.append(_row(path, number, line))
    return rows


def read_existing_rows(path: Path) -> list[Row]:
    """`read_rows` of a file that must be there and must not be empty; a JSON list of objects is read too.

    Raises:
      ValueError: it is missing, empty, or not of that form.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.read_bytes()[:64].lstrip().startswith(b"["):
        rows = _list(path)
    else:
        rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def _list(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as why:
        raise ValueError(f"{path} begins like a JSON list but is not one: {why}") from why
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}, is a {type(row).__name__}, not a JSON object")
    return rows


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as why:
        raise ValueError(f"{path}, line {number}, is torn or not JSON: {why}") from why
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}, is a {type(row).__name__}, not a JSON object")
    return row


class LineLog:
    """A file of JSON lines opened for appending; a context manager.

    Opening locks the file and repairs its end: a last line without newline is completed if it is whole JSON,
    else cut off, since its process was killed while writing it.

    Raises:
      ValueError: another process appends to the file.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{path} is being written by another run; wait for it or stop it"
        self._file = open_exclusive(path, busy)
        self.cut_bytes = self._repair()

    def append(self, row: Row) -> None:
        """Writes one line; it is on disk when this returns."""
        data = (json.dumps(row) + "\n").encode()
        while data:
            data = data[self._file.write(data) or 0 :]
        os.fsync(self._file.fileno())

    def _repair(self) -> int:
        """Mends the last line; returns the number of bytes cut off."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        torn = content[end:]
        if not torn:
            return 0
        try:
            whole = isinstance(json.loads(torn), dict)
        except (ValueError, RecursionError):
            whole = False
        if whole:
            self._file.write(b"\n")
            return 0
        self._file.truncate(end)
        os.fsync(self._file.fileno())
        return len(torn)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
