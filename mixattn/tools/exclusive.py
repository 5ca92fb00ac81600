"""Exclusive use of a file by one process, by flock: the system releases it however the process ends."""

import fcntl
import io
import os
from pathlib import Path


def open_exclusive(path: Path, busy: str) -> io.FileIO:
    """Opens `path` for appending, creates it if missing, and locks it until it is closed.

    Writes are unbuffered, so closing cannot fail. To lock a folder, open a file in it (`folder / ".lock"`).

    Args:
      busy: the sentence of the error if another process holds the lock.

    Raises:
      ValueError: the file is locked already, or was replaced while it was opened.
      OSError: the file cannot be opened.
    """
    file = io.FileIO(str(path), "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        owner = None  # this process holds a file that another one has replaced
    except BlockingIOError:
        owner = _owner(file)
    except FileNotFoundError:
        owner = None
    file.close()
    raise ValueError(busy + (f" (process {owner} holds {path})" if owner else ""))


def _owner(file: io.FileIO) -> int | None:
    """The process that holds an flock on `file`, where the system tells (Linux)."""
    stat = os.fstat(file.fileno())
    identity = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    try:
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    # "34: FLOCK  ADVISORY  WRITE 21445 fe:00:2146436 0 EOF"; one that waits has "->" behind the number.
    fields = (line.split() for line in locks)
    held = (f for f in fields if len(f) >= 6 and f[1] == "FLOCK" and f[5] == identity)
    return next((int(f[4]) for f in held if int(f[4]) > 0), None)
