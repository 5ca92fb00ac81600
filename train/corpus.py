"""Which text there is, and which of its documents are trained on, validated on, or kept for prompts.

A corpus is the standard library of the running interpreter (real text that every machine has), or a file,
folder or glob. A document goes to a part by a hash of its relative name, so that adding or removing files
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

_BUCKETS = 20  # one validation, one held out, the other eighteen trained on
_FEW_FILES, _PIECE_CHARS = 100, 16384
_TEXT = (
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
# Tests and vendored packages are absent on many installs; the code-page tables are numbers, not text.
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One unit of the split. `pieces` are (text, whether its tokens are learnt), in order."""

    name: str
    pieces: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


def part(name: str) -> Part:
    """The part of the split that the document called `name` belongs to."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _BUCKETS
    return {0: "validation", 1: "heldout"}.get(bucket, "train")  # type: ignore[return-value]


def files(path: str) -> list[tuple[str, Path]]:
    """The (relative name, file) pairs of a corpus, sorted by name.

    Args:
      path: "" for the standard library; a folder (its text files, recursively), a file, or a glob.

    Raises:
      ValueError: nothing is there.
    """
    if not path:
        root, found = _standard_library()
    elif Path(path).is_dir():
        root = Path(path)
        found = [f for ending in _TEXT for f in root.rglob(f"*.{ending}")]
    else:
        found = [Path(f) for f in glob.glob(path, recursive=True)]
        root = Path(glob.escape(path)).parent if len(found) == 1 else _common_parent(found)
        if not found:
            raise ValueError(
                f"the corpus {path!r} is neither a folder nor a file, and no file matches it as a glob"
            )
    found = sorted({f for f in found if f.is_file()})
    if not found:
        raise ValueError(f"the corpus {path or root} holds no text file ({', '.join(_TEXT)})")
    return sorted((f.relative_to(root).as_posix(), f) for f in found)


def documents(path: str, limit_bytes: int = 0) -> Iterator[Document]:
    """Reads the corpus at `path`, document after document, in the order of their names.

    A line of a .jsonl file is a document: {"text": ...}, or {"prompt": ..., "answer": ...} of which only the
    answer is learnt. Any other file is one, except in a corpus of under 100 files: there each is cut at line
    ends into pieces of about 16 thousand characters, so that every part of the split gets some.
    Files that are not UTF-8 are passed over.

    Args:
      path: see `files`.
      limit_bytes: stop after that much text and a file of every part; 0 reads all. Files are then taken in
        the order of their hashes, so that the sample is spread over the corpus.

    Raises:
      ValueError: nothing is there, or a line of a .jsonl file is not such a record.
    """
    found = files(path)
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
            yield from (Document(f"{name}#{i}", ((p, True),)) for i, p in enumerate(_lines_grouped(text)))
        elif text:
            yield Document(name, ((text, True),))


def _standard_library() -> tuple[Path, list[Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    kept = []
    for folder, below, names in root.walk():
        below[:] = [name for name in below if name not in _LEFT_OUT and not name.startswith("config-")]
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


def _lines_grouped(text: str) -> Iterator[str]:
    lines, size = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= _PIECE_CHARS:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)
