"""Runs a program that is not trusted: time, memory, file size and processes are bounded, no network.

Linux only. Everything it started dies with it: at the limit, at Ctrl-C, and when this process is killed
(where the kernel allows process namespaces to everybody; elsewhere the program's own time limit ends it).
"""

import functools
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MAX_FILE_BYTES = 64 << 20
MAX_PROCESSES = 256
_NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child=KILL")


class Finished(NamedTuple):
    """How a confined program ended. `exit_code` is negative if a signal ended it, e.g. at the wall limit."""

    exit_code: int
    output: str
    seconds: float
    cpu_seconds: float
    timed_out: bool


def run_confined(
    command: Sequence[str], folder: Path, *, wall_limit_s: float, memory_bytes: int = 6 << 30
) -> Finished:
    """Runs `command` inside `folder`, its only place to write, with a closed standard input.

    Raises:
      FileNotFoundError: the program does not exist.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not there")
    log = folder / ".output"
    start_s = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*_confinement(memory_bytes), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
    try:
        timed_out = not _ended(process.pid, wall_limit_s)
    finally:
        kill_group(process.pid)  # also a solver that outlived its driver
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    output = log.read_bytes()[:MAX_FILE_BYTES].decode("utf-8", "replace")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Finished(process.returncode, output, time.monotonic() - start_s, cpu_s, timed_out)


def kill_group(pid: int) -> None:
    """Ends a process group at once; nothing happens if it ended already."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _ended(pid: int, wall_limit_s: float) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([descriptor], [], [], wall_limit_s)
        return bool(ready)
    finally:
        os.close(descriptor)


@functools.cache
def _confinement(memory_bytes: int) -> tuple[str, ...]:
    """The words in front of a command; those that this machine refuses are left out."""
    limits = (
        "prlimit",
        f"--as={memory_bytes}",
        f"--fsize={MAX_FILE_BYTES}",
        f"--nproc={MAX_PROCESSES}",
        "--core=0",
    )
    with_parent = ("setpriv", "--pdeathsig", "KILL")
    best = (*with_parent, *_NAMESPACES, *limits)
    if _works(best):
        return best
    # Without a namespace the number of processes counts every process of this user.
    alone = tuple(word for word in limits if not word.startswith("--nproc"))
    for candidate in ((*with_parent, *alone), alone):
        if _works(candidate):
            return candidate
    return ()


def confinement() -> str:
    """What confines programs here, for reports: "namespaces and limits", "limits" or "process group only"."""
    words = _confinement(6 << 30)
    return "namespaces and limits" if "unshare" in words else "limits" if words else "process group only"


def _works(prefix: Sequence[str]) -> bool:
    try:
        return subprocess.run([*prefix, "true"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _environment(folder: Path) -> dict[str, str]:
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    return {"PATH": path, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
