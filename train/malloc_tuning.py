"""Keeps freed memory in the process: XLA on the CPU allocates its temporaries with malloc every step.

With glibc's defaults every large temporary is mapped, faulted in page by page and unmapped again in each
step. Keeping it on the heap saves those page faults. Nothing here changes a result.
"""

import ctypes
import os
import sys

# Names and numbers of glibc's malloc.h; other C libraries have no such function, or ignore it.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# Transparent huge pages for the heap can only be asked for before the process starts.
_TUNABLE, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def keep_freed_memory() -> bool:
    """Sets malloc to never map single blocks and never trim the top of the heap.

    Returns:
      Whether the C library accepted both settings. False without glibc, which is slower but correct.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def restart_with_huge_pages() -> None:
    """Restarts this process with huge pages for the heap; returns if they are set already or not available.

    Call it first in a main, before jax is imported, because everything before it runs twice.
    """
    if not sys.platform.startswith("linux") or not hasattr(_libc(), "gnu_get_libc_version"):
        return
    if _TUNABLE in os.environ or not sys.orig_argv:
        return
    os.environ[_TUNABLE] = _HUGE
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
