"""Simulated GPUs need threads: each warpgroup that waits at a barrier blocks one thread of XLA."""

import os

import pytest

# Two warpgroups, the call that started them, and one for the work that the others wait for.
THREADS = 4


def threads() -> int:
    """Number of threads of XLA's CPU client; NPROC overrides the number of cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("NPROC") or cores or 1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("interpreter") and threads() < THREADS:
        pytest.skip(f"a simulated GPU needs {THREADS} threads of XLA, not {threads()}: make test-interpreter")
