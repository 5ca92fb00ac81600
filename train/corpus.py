"""The documents of a corpus, and their split into training, validation and held-out prompts.

A corpus is the source of the running interpreter's standard library (real text that every machine has), or a
file, folder or glob. A hash of its own name decides the part of a document, so adding, removing or changing
files never moves another one.
"""

import dataclasses
import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train import text_files
from train.text_files import LeftOut, Pieces, UnreadableText

type Part = Literal["train", "validation", "heldout"]
PARTS: tuple[Part, ...] = ("train", "validation", "heldout")

_BUCKETS = 20  # of the hash; with the default shares one for validation, one held out, eighteen for training
_HASHES = -(-(1 << 32) // _BUCKETS)
_PIECE_CHARS = 16384
# Many installs lack tests and vendored packages; the code-page tables are numbers, not text.
_EXCLUDED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One unit of text. `pieces` are (text, whether its tokens count in the loss), in order.

    Attributes:
      key: name whose hash decides the part.
    """

    name: str
    pieces: Pieces
    key: str

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


@dataclass(frozen=True)
class Corpus:
    """What is read, and how it is split.

    Attributes:
      path: "" for the standard library; a folder (its text files, recursively), a file, or a glob.
      limit_bytes: stop after that much text and one file of every part; 0 reads all. With a limit, files are
        read in the order of their hashes, which spreads the sample over the corpus.
      text_field: field of .jsonl records, or column of .parquet files, that holds the text.
      split_by: "piece": text files are cut at line ends into documents of about 16 thousand characters, each
        in a part of its own; "file": all of a file is in one part. The standard library is never cut.
      validation_path: like `path`; then all of it is the validation part, and nothing else is.
      validation_share, heldout_share: shares of the documents.
    """

    path: str = ""
    limit_bytes: int = 0
    text_field: str = "text"
    split_by: str = "piece"
    validation_path: str = ""
    validation_share: float = 1 / _BUCKETS
    heldout_share: float = 1 / _BUCKETS

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that must get documents."""
        shares = {"validation": self.validation_path or self.validation_share, "heldout": self.heldout_share}
        return tuple(part for part in PARTS if shares.get(part, 1))

    def part(self, key: str) -> Part:
        """The part of a document of `path`."""
        validation_share = 0.0 if self.validation_path else self.validation_share
        return part(key, validation_share, self.heldout_share)

    def documents(self, left_out: list[LeftOut] | None = None) -> Iterator[tuple[Part, Document]]:
        """Every document with its part; see `documents`. Files of the validation set do not train."""
        apart = dict(list_files(self.validation_path, left_out)) if self.validation_path else {}
        mine = {file.resolve() for file in apart.values()}
        for document in documents(
            self.path,
            self.limit_bytes,
            text_field=self.text_field,
            split_by=self.split_by,
            left_out=left_out,
            exclude=mine,
        ):
            yield self.part(document.key), document
        for name, file in apart.items():
            for document in _read(f"validation/{name}", file, self.text_field, "piece", left_out):
                yield "validation", document


def part(key: str, validation_share: float = 1 / _BUCKETS, heldout_share: float = 1 / _BUCKETS) -> Part:
    """Returns the part of the split that the document `key` belongs to."""
    hashed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    # In [0, 1); its twentieths are the buckets of older versions.
    at = (hashed % _BUCKETS + (hashed // _BUCKETS) / _HASHES) / _BUCKETS
    if at < validation_share:
        return "validation"
    return "heldout" if at < validation_share + heldout_share else "train"


def list_files(path: str, left_out: list[LeftOut] | None = None) -> list[tuple[str, Path]]:
    """Returns the (relative name, file) pairs of a corpus, sorted by name.

    Args:
      path: see `Corpus`. A file or glob may have any suffix.
      left_out: gets the files of a folder that are not read.

    Raises:
      ValueError: there is no such file, or a name is not Unicode.
    """
    left_out = [] if left_out is None else left_out
    if not path:
        root, found = _standard_library()
    elif Path(path).is_dir():
        root = Path(path)
        found = _text_files(root, left_out)
    elif Path(path).is_file():  # also one whose name has brackets
        root, found = Path(path).parent, [Path(path)]
    else:
        found = [Path(f) for f in glob.glob(path, recursive=True)]
        root = Path(glob.escape(path)).parent if len(found) == 1 else _common_parent(found)
        if not found:
            raise ValueError(
                f"the corpus {path!r} is neither a folder nor a file, and no file matches it as a glob"
            )
    found = sorted({f for f in found if f.is_file()})
    if not found:
        also = f"; left out: {describe(left_out)}" if left_out else ""
        raise ValueError(
            f"the corpus {path or root} holds no text file ({', '.join(text_files.SUFFIXES)}){also}"
        )
    return sorted((f.relative_to(root).as_posix(), f) for f in found)


def documents(
    path: str,
    limit_bytes: int = 0,
    *,
    text_field: str = "text",
    split_by: str = "piece",
    left_out: list[LeftOut] | None = None,
    exclude: set[Path] | None = None,
) -> Iterator[Document]:
    """Reads the documents of the corpus at `path`, in the order of their names.

    A record of a .jsonl or .parquet file is a document (`text_files.read_records`).

    Args:
      path, limit_bytes, text_field, split_by: see `Corpus`.
      left_out: gets the files that are not read, with the reason.
      exclude: resolved files that are not read.

    Raises:
      ValueError: there is no such file, or a record is damaged.
    """
    left_out = [] if left_out is None else left_out
    found = list_files(path, left_out)
    if exclude:
        left_out += [LeftOut(n, "is in the validation set") for n, f in found if f.resolve() in exclude]
        found = [(name, file) for name, file in found if file.resolve() not in exclude]
    if limit_bytes:
        found.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest()[4:])
    split_by = split_by if path else "file"
    read_bytes = 0
    read_parts: set[Part] = set()
    for name, file in found:
        enough = split_by == "piece" or len(read_parts) == len(PARTS)
        if limit_bytes and read_bytes >= limit_bytes and enough:
            return
        read_parts.add(part(name))
        for document in _read(name, file, text_field, split_by, left_out):
            read_bytes += len(document.text.encode()) if limit_bytes else 0
            yield document


def _read(
    name: str, file: Path, text_field: str, split_by: str, left_out: list[LeftOut] | None
) -> Iterator[Document]:
    """The documents of one file."""
    if text_files.kind(name) in text_files.RECORDS:
        without_text = 0
        for number, pieces in text_files.read_records(file, name, text_field):
            if not any(text for text, _ in pieces):
                without_text += 1
                continue
            own = f"{name}#{number}"
            yield Document(own, pieces, name if split_by == "file" else own)
        if without_text and left_out is not None:
            left_out.append(LeftOut(name, f"has {without_text} records without text, which are left out"))
        return
    try:
        text = text_files.read_text(file)
    except UnreadableText as why:
        if left_out is not None:
            left_out.append(LeftOut(name, str(why)))
        return
    if not text and left_out is not None:
        left_out.append(LeftOut(name, "is empty"))
    if text and split_by == "file":
        yield Document(name, ((text, True),), name)
        return
    for number, piece in enumerate(_split_at_lines(text)):
        own = f"{name}#{number}"
        yield Document(own, ((piece, True),), own)


def describe(left_out: list[LeftOut], most: int = 20) -> str:
    """The files that are left out in words: each with its reason, up to `most`."""
    words = [f"{name} {reason}" for name, reason in left_out[:most]]
    return "; ".join(words + [f"and {len(left_out) - most} more"] * (len(left_out) > most))


def _text_files(root: Path, left_out: list[LeftOut]) -> list[Path]:
    """The files below a folder that are read; what is hidden counts once, with its folder."""
    kept = []
    for folder, below, names in root.walk():
        linked = [name for name in below if (folder / name).is_symlink()]
        for name in (n for n in below if n.startswith(".") or n == "__pycache__"):
            left_out.append(LeftOut((folder / name).relative_to(root).as_posix() + "/", "is hidden"))
        left_out += [
            LeftOut((folder / n).relative_to(root).as_posix(), "is a link to a folder") for n in linked
        ]
        below[:] = [n for n in below if not n.startswith(".") and n != "__pycache__" and n not in linked]
        for name in names:
            short = (folder / name).relative_to(root).as_posix()
            if not _is_unicode(short):
                left_out.append(
                    LeftOut(os.fsencode(short).decode("utf-8", "replace"), "has a name that is not UTF-8")
                )
            elif name.startswith("."):
                left_out.append(LeftOut(short, "is hidden"))
            elif not text_files.is_known(name):
                suffix = text_files.kind(name)
                left_out.append(LeftOut(short, f"has the suffix .{suffix}" if suffix else "has no suffix"))
            elif not (folder / name).is_file():
                left_out.append(LeftOut(short, "is not a file"))
            else:
                kept.append(folder / name)
    left_out.sort()
    return kept


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _split_at_lines(text: str) -> Iterator[str]:
    """Cuts at line ends after every 16 thousand characters; longer lines are cut inside."""
    lines, size = [], 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), _PIECE_CHARS):
            lines.append(line[start : start + _PIECE_CHARS])
            size += len(lines[-1])
            if size >= _PIECE_CHARS:
                yield "".join(lines)
                lines, size = [], 0
    if lines:
        yield "".join(lines)


def as_request(corpus: Corpus) -> dict[str, object]:
    """The fields as JSON, to compare with those that a folder was written for."""
    return dataclasses.asdict(corpus)
