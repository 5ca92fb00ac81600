"""Reads one file of a corpus: text, JSON lines or parquet, as it is or compressed by gzip or zstandard.

The last suffix that is no compression says what a file is: `.jsonl`, `.ndjson` and `.parquet` hold a document
a record, everything else is text in UTF-8. Zstandard and parquet need pyarrow (the extra `data`).
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

# Text and whether its tokens count in the loss, in order.
type Pieces = tuple[tuple[str, bool], ...]

RECORDS = ("jsonl", "ndjson", "parquet")
_PROSE = ("txt", "md", "rst", "tex", "org")
_CODE = (
    *("py", "c", "h", "cc", "cpp", "hpp", "rs", "go", "java", "js", "ts", "jsx", "tsx", "html", "css"),
    *("json", "sh", "rb", "php", "cs", "kt", "scala", "swift", "lua", "sql", "toml", "yaml", "yml", "jl"),
)
SUFFIXES = (*_PROSE, *_CODE, *RECORDS)
COMPRESSIONS = ("gz", "zst")
# By their byte order marks; that of UTF-32 begins like one of UTF-16.
_WIDE = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_DAMAGE = (OSError, EOFError, zlib.error)


class LeftOut(NamedTuple):
    """A file of a corpus that is not read, and why."""

    name: str
    reason: str


class UnreadableText(ValueError):
    """The file as a whole is not text that can be read; the message is the reason."""


def kind(name: str) -> str:
    """The suffix that says what the file holds, in lower case, without compressions; "" if there is none."""
    suffixes = [suffix[1:].lower() for suffix in PurePath(name).suffixes]
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_known(name: str) -> bool:
    """Whether a folder's file of this name is read."""
    return kind(name) in SUFFIXES


def read_text(path: Path) -> str:
    """The whole file as text, with newlines as "\\n" and without a byte order mark.

    Raises:
      UnreadableText: it is damaged or not UTF-8.
      ValueError: zstandard without pyarrow.
    """
    try:
        with _open(path) as file:
            data = file.read()
    except _DAMAGE as why:
        raise UnreadableText(f"cannot be read: {_short(why)}") from why
    if wide := next((name for mark, name in _WIDE.items() if data.startswith(mark)), ""):
        raise UnreadableText(f"is {wide}, not UTF-8 (iconv -f {wide} -t UTF-8 converts it)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        raise UnreadableText(f"is not UTF-8: byte 0x{data[why.start]:02x} at {why.start}") from why
    if "\0" in text:
        raise UnreadableText(f"is not text: a zero byte at {data.index(0)}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_records(path: Path, name: str, text_field: str) -> Iterator[tuple[int, Pieces]]:
    """Yields (number from 0, pieces) of every record of a .jsonl or .parquet file, one after the other.

    A record is {text_field: ...}, or {"prompt": ..., "answer": ...}: only the answer counts in the loss.

    Raises:
      ValueError: names the file, the record and what is wrong with it.
    """
    try:
        yield from (_parquet if kind(name) == "parquet" else _json_lines)(path, name, text_field)
    except _DAMAGE as why:
        raise ValueError(f"{name} cannot be read: {_short(why)}") from why


def _json_lines(path: Path, name: str, text_field: str) -> Iterator[tuple[int, Pieces]]:
    with _open(path) as file:
        for number, line in enumerate(file):  # of bytes: only b"\n" ends a line
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            where = f"{name} line {number + 1}"
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as why:
                raise ValueError(
                    f"{where} is not UTF-8: byte 0x{line[why.start]:02x} at {why.start}"
                ) from why
            except (ValueError, RecursionError) as why:
                raise ValueError(f"{where} is not {_shape(text_field)}: {_short(why)}") from why
            yield number, _pieces(record, where, text_field)


def _parquet(path: Path, name: str, text_field: str) -> Iterator[tuple[int, Pieces]]:
    arrow = _pyarrow(f"{name} is a parquet file")
    from pyarrow import parquet

    try:
        with _open(path) as stream:
            source = path if kind(path.name) == path.suffix[1:].lower() else io.BytesIO(stream.read())
        with parquet.ParquetFile(source) as file:
            columns = file.schema_arrow.names
            wanted = [text_field] if text_field in columns else ["prompt", "answer"]
            if missing := [column for column in wanted if column not in columns]:
                raise ValueError(
                    f"{name} has no column {text_field!r}{_or_pair(missing)}; it has {', '.join(columns)}"
                )
            number = 0
            for batch in file.iter_batches(columns=wanted):
                for record in batch.to_pylist():
                    yield number, _pieces(record, f"{name} row {number}", text_field)
                    number += 1
    except arrow.ArrowException as why:
        raise ValueError(f"{name} is not a parquet file that can be read: {_short(why)}") from why


def _or_pair(missing: list[str]) -> str:
    return "" if len(missing) == 2 else f", and of the pair prompt, answer no {missing[0]!r}"


def _pieces(record: Any, where: str, text_field: str) -> Pieces:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not {_shape(text_field)}: it is a {type(record).__name__}")
    pair = text_field not in record and "prompt" in record
    wanted = {"prompt": False, "answer": True} if pair else {text_field: True}
    for field in wanted:
        text = record.get(field)
        if not isinstance(text, str):
            found = (
                "is missing" if field not in record else f"is {json.dumps(text, default=str)[:40]}, no text"
            )
            raise ValueError(f"{where} is not {_shape(text_field)}: {field!r} {found}")
        try:
            text.encode()
        except UnicodeEncodeError as why:
            half = f"\\u{ord(text[why.start]):04x}"
            raise ValueError(f"{where}: {field!r} holds {half}, half of a surrogate pair, no text") from why
    return tuple((record[field], in_loss) for field, in_loss in wanted.items())


def _shape(text_field: str) -> str:
    return f'{{"{text_field}": ...}} or {{"prompt": ..., "answer": ...}}'


def _open(path: Path) -> Any:
    """Opens for reading bytes; compressions are undone by suffix."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".zst":
            arrow = _pyarrow(f"{path.name} is compressed by zstandard")
            return io.BufferedReader(_Raw(arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")))
    return path.open("rb")


class _Raw(io.RawIOBase):
    """pyarrow's stream as Python's, which splits lines."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
    except ImportError as why:
        raise ValueError(f"{what}, which needs pyarrow: pip install 'mixattn[data]'") from why
    return pyarrow


def _short(why: Exception) -> str:
    return " ".join(str(why).split())[:120] or type(why).__name__
