"""Tables from parquet, JSON lines, a JSON list or CSV; only the columns that are asked for are read."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

TEXT = ("model_a", "model_b", "winner", "judge", "language")
NESTED = ("conv_metadata",)  # an object, kept as JSON text where the format has no structs
BLOCK_BYTES = 8 << 20


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """Those of `columns` that the file has; a missing value is null.

    Raises:
      ValueError: the name ends in none of READERS, or the file is torn; says the row where it can.
      OSError: the file cannot be read.
    """
    ending = path.suffix.lower()
    if ending not in READERS:
        raise ValueError(f"{path} ends in {ending or 'nothing'!r}, not in one of {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if not path.stat().st_size:
        raise ValueError(f"{path} has no votes that count: it is empty")
    return READERS[ending](path, list(dict.fromkeys(columns)))


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    try:
        kinds = {field.name: field.type for field in pa_parquet.read_schema(path)}
        here = [name for name in columns if name in kinds]
        text = [name for name in here if name in TEXT and pa.types.is_string(kinds[name])]
        return pa_parquet.ParquetFile(path, read_dictionary=text).read(columns=here)
    except (pa.ArrowException, OSError) as why:  # Arrow reports damaged pages as either
        raise ValueError(f"{path} is not a whole parquet file: {why}") from why


def _read_csv(path: Path, columns: list[str]) -> pa.Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            header = next(csv.reader(file), [])
        except (UnicodeDecodeError, csv.Error) as why:
            raise ValueError(f"{path} is not a CSV file in UTF-8: {why}") from why
    twice = sorted({name for name in header if header.count(name) > 1} & set(columns))
    if twice:
        raise ValueError(f"the header of {path} names column {twice[0]!r} twice")
    here = [name for name in columns if name in header]
    torn: list[str] = []

    def ragged(row: Any) -> str:
        # Arrow counts the header as row 1.
        torn.append(
            f"row {(row.number or 1) - 1}: {row.actual_columns} fields, expected {row.expected_columns}"
        )
        return "skip"

    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=ragged),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in here},
                include_columns=here,
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as why:
        raise ValueError(f"{path}: {why}") from why
    if torn:
        raise ValueError(torn[0])
    return table


def _read_lines(path: Path, columns: list[str]) -> pa.Table:
    """JSON lines: Arrow's reader, and if that fails a plain one that can say where and why."""
    try:
        sample = next(_records(path))[1]
    except StopIteration:
        raise ValueError(f"{path} has no votes that count: it has no rows") from None
    schema = pa.schema([(name, _arrow_type(name, sample.get(name))) for name in columns])
    try:
        return pa_json.read_json(
            path,
            read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pa_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=False
            ),
        ).select(columns)
    except (pa.ArrowException, NotImplementedError):
        return _from_records((record for _, record in _records(path)), columns)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, record) for each line that is not blank."""
    row = 0
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            row += 1
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as why:
                torn = "" if line.endswith(b"\n") else "; the file ends in the middle of it"
                raise ValueError(f"row {row}: the line is not valid JSON{torn} ({why})") from why
            if not isinstance(record, dict):
                raise ValueError(f"row {row}: the line is a JSON {type(record).__name__}, not an object")
            yield row, record


def _read_json(path: Path, columns: list[str]) -> pa.Table:
    """A JSON list of records; a file of JSON lines under this name is read as such."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as why:
        raise ValueError(f"{path} is not UTF-8: {why}") from why
    if text.lstrip()[:1] != "[":
        return _read_lines(path, columns)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as why:
        raise ValueError(f"row {_rows_before_tear(text) + 1}: the JSON list is torn ({why})") from why
    for row, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"row {row}: the entry is a JSON {type(record).__name__}, not an object")
    return _from_records(iter(records), columns)


def _rows_before_tear(text: str) -> int:
    decoder, at, rows = json.JSONDecoder(), text.index("[") + 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return rows
        rows += 1


def _arrow_type(name: str, sample: Any) -> pa.DataType:
    """The Arrow type of a JSON field, from the first record's value."""
    if name in TEXT:
        return pa.string()
    if name == "anony" or isinstance(sample, bool):
        return pa.bool_()
    if name in ("tstamp", "pair_probability") and not isinstance(sample, str):
        return pa.float64()
    if isinstance(sample, dict):
        return pa.struct([(key, _arrow_type("", value)) for key, value in sample.items()])
    if isinstance(sample, int | float):
        return pa.int64() if name == "question_id" else pa.float64()
    return pa.string()


def _from_records(records: Iterator[dict[str, Any]], columns: list[str]) -> pa.Table:
    """A table of Python records. Text must be text; identifiers become text.

    Raises:
      ValueError: names the row whose field has the wrong type.
    """
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for row, record in enumerate(records, 1):
        for name, column in values.items():
            value = record.get(name)
            if name in TEXT and not isinstance(value, str | None):
                raise ValueError(f"row {row}: field {name!r} is {value!r}, not text")
            if name == "anony" and value is not None and not isinstance(value, bool):
                raise ValueError(f"row {row}: anony is {value!r}, neither true nor false")
            column.append(_utf8(row, name, _plain(value) if name not in TEXT else value))
    return pa.table({name: pa.array(column, pa.string()) for name, column in values.items()})


def _utf8(row: int, name: str, value: str | None) -> str | None:
    try:
        return value if value is None else value.encode().decode()
    except UnicodeEncodeError as why:
        raise ValueError(f"row {row}: field {name!r} holds half a character ({why})") from why


def _plain(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


READERS = {".parquet": _read_parquet, ".jsonl": _read_lines, ".json": _read_json, ".csv": _read_csv}
