"""The documents of a corpus, and their split into training, validation and held-out prompts.

A corpus is the source of the running interpreter's standard library (real text that every machine has), or a
file, folder or glob. A hash of its relative name decides the part of a document, so adding or removing files
never moves another one.
"""

import glob
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

type Part = Literal["train", "validation", "heldout"]
PARTS: tuple[Part, ...] = ("train", "validation", "heldout")

_BUCKETS = 20  # one for validation, one held out, eighteen for training
_FEW_FILES, _PIECE_CHARS = 100, 16384
_SUFFIXES = (
    "txt",
    "md",
    "rst",
    "py",
    "c",
    "h",
    "cc",
    "cpp",
    "rs",
    "go",
    "java",
    "js",
    "ts",
    "html",
    "json",
    "jsonl",
)
# Many installs lack tests and vendored packages; the code-page tables are numbers, not text.
_EXCLUDED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One unit of the split. `pieces` are (text, whether its tokens count in the loss), in order."""

    name: str
    pieces: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


def part(name: str) -> Part:
    """Returns the part of the split that the document `name` belongs to."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _BUCKETS
    return {0: "validation", 1: "heldout"}.get(bucket, "train")  # type: ignore[return-value]


def list_files(path: str) -> list[tuple[str, Path]]:
    """Returns the (relative name, file) pairs of a corpus, sorted by name.

    Args:
      path: "" for the standard library; a folder (its text files, recursively), a file, or a glob.

    Raises:
      ValueError: there is no such file.
    """
    if not path:
        root, found = _standard_library()
    elif Path(path).is_dir():
        root = Path(path)
        found = [f for suffix in _SUFFIXES for f in root.rglob(f"*.{suffix}")]
    else:
        found = [Path(f) for f in glob.glob(path, recursive=True)]
        root = Path(glob.escape(path)).parent if len(found) == 1 else _common_parent(found)
        if not found:
            raise ValueError(
                f"the corpus {path!r} is neither a folder nor a file, and no file matches it as a glob"
            )
    found = sorted({f for f in found if f.is_file()})
    if not found:
        raise ValueError(f"the corpus {path or root} holds no text file ({', '.join(_SUFFIXES)})")
    return sorted((f.relative_to(root).as_posix(), f) for f in found)


def documents(path: str, limit_bytes: int = 0) -> Iterator[Document]:
    """Reads the documents of the corpus at `path`, in the order of their names.

    A line of a .jsonl file is a document: {"text": ...}, or {"prompt": ..., "answer": ...}, where only the
    answer counts in the loss. Any other file is one document. In a corpus of fewer than 100 files, each file
    is cut at line ends into documents of about 16 thousand characters, so that every part of the split gets
    some. Files that are not UTF-8 are skipped.

    Args:
      path: see `list_files`.
      limit_bytes: stop after that much text and one file of every part; 0 reads all. With a limit, files are
        read in the order of their hashes, which spreads the sample over the corpus.

    Raises:
      ValueError: there is no such file, or a line of a .jsonl file is not such a record.
    """
    found = list_files(path)
    if limit_bytes:
        found.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest()[4:])
    cut = len(found) < _FEW_FILES
    read_bytes = 0
    read_parts: set[Part] = set()
    for name, file in found:
        if limit_bytes and read_bytes >= limit_bytes and (cut or len(read_parts) == len(PARTS)):
            return
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        read_bytes += len(text.encode())
        read_parts.add(part(name))
        if file.suffix == ".jsonl":
            yield from _records(name, text)
        elif text and cut:
            yield from (Document(f"{name}#{i}", ((p, True),)) for i, p in enumerate(_split_at_lines(text)))
        elif text:
            yield Document(name, ((text, True),))


def _standard_library() -> tuple[Path, list[Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    kept = []
    for folder, below, names in root.walk():
        below[:] = [name for name in below if name not in _EXCLUDED and not name.startswith("config-")]
        kept += [folder / n for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata")]
    return root, kept


def _common_parent(found: list[Path]) -> Path:
    parents = [f.parent.parts for f in found]
    shared = []
    for level in zip(*parents):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return Path(*shared) if shared else Path()


def _records(name: str, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            pieces = (
                ((record["prompt"], False), (record["answer"], True))
                if "prompt" in record
                else ((record["text"], True),)
            )
        except (ValueError, KeyError, TypeError) as why:
            raise ValueError(
                f'{name} line {number + 1} is not {{"text": ...}} or {{"prompt": ..., "answer": ...}}: {why}'
            ) from why
        yield Document(f"{name}#{number}", pieces)


def _split_at_lines(text: str) -> Iterator[str]:
    lines, size = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= _PIECE_CHARS:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)
