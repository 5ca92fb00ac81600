"""Votes from files in the public format: parquet, JSON lines, a JSON list or CSV. Needs the extra `evals`.

Fields: question_id, model_a, model_b, winner, judge, anony, language, tstamp, and for weighting
pair_probability, the probability with which the vote's unordered pair was drawn. A row is a record, counted
from 1; the header of a CSV file and blank lines are not counted.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mixattn.evals.arena.stats import formats
from mixattn.evals.arena.stats.votes import LABELS, Votes

FIELDS = ("question_id", "model_a", "model_b", "winner", "judge", "anony", "language", "tstamp")
NEEDED = ("model_a", "model_b", "winner")
PROBABILITY = "pair_probability"
MAX_NAME = 500  # characters
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
MIN_PROBABILITY = 1e-12  # a vote that weighs more than a million million others drowns them by rounding


def read_votes(path: str | Path, columns: Sequence[str] = ()) -> Votes:
    """The anonymous votes of a file, validated.

    Every row needs the fields of NEEDED; a field that some row has, every row must have. A file without the
    field `anony` counts as anonymous throughout.

    Args:
      columns: further columns that the caller needs.

    Raises:
      ValueError: a row, named by its number, or the file is wrong.
      OSError: the file cannot be read.
    """
    path = Path(path)
    table = formats.read_table(path, [*FIELDS, PROBABILITY, *columns])
    return from_table(table, columns, source=str(path))


def from_table(table: pa.Table, columns: Sequence[str], *, source: str) -> Votes:
    """The anonymous votes of a table; see `read_votes`."""
    problems = _Problems()
    if not table.num_rows:
        raise ValueError(f"{source} has no votes that count: it has no rows")
    absent = {name for name in table.column_names if table[name].null_count == table.num_rows}
    table = table.drop_columns(sorted(absent))
    for name in (*NEEDED, *columns):
        if name not in table.column_names:
            raise ValueError(f"row 1: field {name!r} is missing, in {source} and in every row after it")
    for name in NEEDED:
        kind = table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"row 1: field {name!r} is of type {kind}, not text")
    for name in (*FIELDS, *(c for c in columns if c != PROBABILITY)):
        if name in table.column_names:
            problems.need(name, table[name])
    (first, names), (second, others) = _encode(table["model_a"]), _encode(table["model_b"])
    for name, codes, found in (("model_a", first, names), ("model_b", second, others)):
        problems.add_names(name, codes, found)
    models = tuple(sorted({*names, *others}))
    place = {name: i for i, name in enumerate(models)}
    first, second = _recode(first, names, place), _recode(second, others, place)
    outcome, labels = _encode(table["winner"])
    _known_labels(problems, outcome, labels)
    used = _anonymous(problems, table)
    problems.add((first == second) & used, lambda i: f"model_a and model_b are both {models[first[i]]!r}")
    extra = _columns(problems, table, columns, used)
    problems.report()
    votes = Votes(
        table.num_rows,
        models,
        first,
        second,
        _recode(outcome, labels, LABELS),
        np.arange(1, table.num_rows + 1),
        extra,
    )
    if not used.any():
        raise ValueError(f"{source} has no votes that count: in none of its {len(used)} rows is anony true")
    return votes.where(used)


class _Problems:
    """Collects what is wrong, and reports the first row."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []

    def add(self, bad: NDArray[np.bool_], say: Any) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            self._found.append((at, say(at)))

    def need(self, name: str, column: pa.ChunkedArray) -> None:
        """Every row must have the field, and text must not be empty."""
        if column.null_count:
            self.add(_numpy(pc.is_null(column)), lambda i: f"field {name!r} is missing")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
            self.add(_numpy(blank), lambda i: f"field {name!r} is empty")
        elif pa.types.is_dictionary(column.type):
            codes, values = _encode(column)
            blank = np.array([*(not str(v).strip() for v in values), False])
            self.add(blank[codes], lambda i: f"field {name!r} is empty")

    def add_names(self, name: str, codes: NDArray[np.int64], found: list[str]) -> None:
        """A model's name goes into tables and messages: one line without control characters, not too long."""
        long = np.array([*(len(value or "") > MAX_NAME for value in found), False])
        odd = np.array([*(bool(CONTROL.search(value or "")) for value in found), False])
        self.add(long[codes], lambda i: f"{name} has {len(found[codes[i]])} characters; at most {MAX_NAME}")
        self.add(odd[codes] & ~long[codes], lambda i: f"{name} {found[codes[i]]!r} holds a control character")

    def report(self) -> None:
        if self._found:
            at, what = min(self._found, key=lambda problem: problem[0])
            raise ValueError(f"row {at + 1}: {what}")


def _numpy(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(column.fill_null(False).to_numpy(), dtype=bool)


def _encode(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """(n,) codes, -1 where the value is missing, and the values that the codes stand for."""
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), array.dictionary.to_pylist()


def _recode(codes: NDArray[np.int64], values: list[str], place: dict[str, int]) -> NDArray[np.int64]:
    """Codes of one vocabulary as those of another; -1 where the value is missing or unknown."""
    return np.array([*(place.get(v, -1) for v in values), -1], dtype=np.int64)[codes]


def _known_labels(problems: _Problems, codes: NDArray[np.int64], labels: list[str]) -> None:
    unknown = np.array([*(label not in LABELS and bool(label) for label in labels), False])
    known = ", ".join(LABELS)
    problems.add(unknown[codes], lambda i: f"winner {labels[codes[i]]!r} is not one of {known}")


def _anonymous(problems: _Problems, table: pa.Table) -> NDArray[np.bool_]:
    """(n,) which rows were voted without knowing the names."""
    if "anony" not in table.column_names:
        return np.ones(table.num_rows, dtype=bool)
    column = table["anony"]
    if pa.types.is_boolean(column.type):
        return _numpy(column)
    codes, values = _encode(column.cast(pa.string()))
    known = {"true": True, "1": True, "false": False, "0": False}
    meaning = [known.get(str(v).lower()) for v in values]
    problems.add(
        np.array([*(m is None and bool(v) for m, v in zip(meaning, values)), False])[codes],
        lambda i: f"anony is {values[codes[i]]!r}, neither true nor false",
    )
    return np.array([*(m is True for m in meaning), False])[codes]


def _columns(
    problems: _Problems, table: pa.Table, columns: Sequence[str], used: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """The further columns as numpy arrays; text and identifiers stay objects."""
    found: dict[str, NDArray[Any]] = {}
    for name in columns:
        if name != PROBABILITY:
            column = table[name]
            if pa.types.is_dictionary(column.type):
                codes, values = _encode(column)
                found[name] = np.array([*values, None], dtype=object)[codes]
            else:
                found[name] = np.asarray(column.to_numpy())
    if PROBABILITY in table.column_names:
        probability = _floats(problems, PROBABILITY, table[PROBABILITY])
        missing = _blank(table[PROBABILITY])
        if PROBABILITY in columns:
            problems.add(missing & used, lambda i: f"field {PROBABILITY!r} is missing")
            found[PROBABILITY] = probability
        wrong = used & ~missing & ~((probability > 0) & (probability <= 1))
        problems.add(wrong, lambda i: f"{PROBABILITY} is {probability[i]:g}, not above 0 and at most 1")
        tiny = used & ~wrong & (probability < MIN_PROBABILITY)
        problems.add(tiny, lambda i: f"{PROBABILITY} is {probability[i]:g}, below {MIN_PROBABILITY:g}")
    return found


def _blank(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(n,) where there is no value; NaN is one."""
    if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
        return _numpy(pc.equal(column.fill_null(""), ""))
    return _numpy(pc.is_null(column))


def _floats(problems: _Problems, name: str, column: pa.ChunkedArray) -> NDArray[np.float64]:
    if not (pa.types.is_string(column.type) or pa.types.is_dictionary(column.type)):
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    texts = column.cast(pa.string()).to_pylist()
    values = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        try:
            values[i] = float(text) if text else np.nan
        except ValueError:
            problems.add(np.arange(len(texts)) == i, lambda i: f"{name} is {texts[i]!r}, not a number")
            break
    return values
