"""Atomic file writes: under a temporary name, then renamed, so that a file is either whole or absent."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`: renamed to it if the block succeeds, else removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text as it is, without translating newlines."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Parses `path`.

    Raises:
      ValueError: it is not JSON; another program has written to it, since our writes are atomic.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as why:
        raise ValueError(
            f"{path} is not valid JSON ({why}); remove it or its folder and start again"
        ) from why
