"""Rows of a CSV file by column name, whatever the case and order of its header."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving.sim.traces.trace import open_text

MAX_FIELD = 1 << 20  # characters


def rows(path: str | Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every row that is not empty.

    Raises:
      ValueError: a column of `needed` that the header lacks, a row of another length, or bytes that are not
      text.
    """
    csv.field_size_limit(MAX_FIELD)
    reader = None
    try:
        with open_text(path) as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            names = {name.lower(): name for name in header}
            if missing := [name for name in needed if name.lower() not in names]:
                found = ", ".join(header)[:200] or "nothing"
                raise ValueError(f"{path} line 1: no column {', '.join(missing)}; found {found}")
            columns = [next((n for n in needed if n.lower() == name.lower()), name) for name in header]
            for values in reader:
                if not values:
                    continue
                if len(values) != len(columns):
                    counts = f"{len(values)} fields, but the header has {len(columns)}"
                    raise ValueError(f"{path} line {reader.line_num}: {counts}")
                yield reader.line_num, dict(zip(columns, values))
    except (UnicodeDecodeError, csv.Error, EOFError, OSError) as why:
        if isinstance(why, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise ValueError(f"{path} line {reader.line_num if reader else 1}: not readable: {why}") from why
