"""Simulated GPUs need threads: each warpgroup that waits at a barrier holds one of XLA's while it waits."""

import os

import pytest

# Two warpgroups and the call that started them, and one that does the work the others wait for.
THREADS = 4


def threads() -> int:
    """How many XLA's CPU client runs; NPROC sets it where the machine does not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("NPROC") or cores or 1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("interpreter") and threads() < THREADS:
        pytest.skip(
            f"a simulated GPU needs {THREADS} threads of XLA, here is {threads()}: make test-interpreter"
        )
