"""Digests of every file of a folder, so that damage is noticed before anything is read.

`digests.txt` holds a line for each file (XXH3-128 in hex, bytes, relative path), sorted by path, and ends
with the digest of these lines. It is no defence against somebody who wants to deceive: anyone can write it.
"""

import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

NAME = "digests.txt"


def write(folder: Path) -> None:
    """Records the files that lie in `folder` now."""
    (folder / NAME).write_text(_text(folder, _files(folder)), encoding="utf-8", newline="")


def check(folder: Path) -> None:
    """Compares the files of `folder` with its record. Without one it passes: an older version wrote it.

    Raises:
      ValueError: names a file that is missing, new, or not as it was written.
    """
    try:
        recorded = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return
    *lines, last = recorded.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if recorded != "".join(f"{line}\n" for line in (*lines, last)).encode() or last != _of_lines(lines):
        raise ValueError(f"{NAME} is damaged: not as it was written")
    found = _text(folder, _files(folder)).removesuffix("\n").split("\n")[:-1]
    if found == lines:
        return
    before, now = ({line.split(" ", 2)[2]: line for line in some} for some in (lines, found))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            how = "is missing" if name not in now else "is new" if name not in before else "is damaged"
            raise ValueError(f"{name} {how}: not as it was written")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME)


def _text(folder: Path, paths: Iterable[Path]) -> str:
    paths = list(paths)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(_of_file, paths))
    lines = [
        f"{digest} {size} {path.relative_to(folder).as_posix()}"
        for path, (digest, size) in zip(paths, digests)
    ]
    return "".join(f"{line}\n" for line in (*lines, _of_lines(lines)))


def _of_file(path: Path) -> tuple[str, int]:
    """Digest and size. Mapped, since copying a file out of the page cache costs seven times the hash."""
    with path.open("rb") as file:
        if not (size := os.fstat(file.fileno()).st_size):  # which cannot be mapped
            return xxhash.xxh3_128_hexdigest(b""), 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if hasattr(mmap, "MADV_WILLNEED"):
                data.madvise(mmap.MADV_WILLNEED)
            return xxhash.xxh3_128_hexdigest(data), size


def _of_lines(lines: Iterable[str]) -> str:
    return xxhash.xxh3_128("".join(f"{line}\n" for line in lines).encode()).hexdigest()
