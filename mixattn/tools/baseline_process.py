"""Baseline programs for benchmarks: a process with its own environment, queried through JSON lines."""

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

type QueryFn = Callable[..., dict[str, Any]]  # fields of a query -> its answer


@contextmanager
def peer(name: str, command: Sequence[str]) -> Iterator[QueryFn]:
    """Runs a baseline process for the duration of the block and yields a function that queries it.

    Args:
      name: the process's name in error messages.

    Raises:
      ValueError: the process cannot be started, or it exited.
    """
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as why:
        raise ValueError(f"{command[0]} cannot be started ({why}); see tests/parity") from why

    def ask(**fields: Any) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(fields) + "\n")
        process.stdin.flush()
        if not (line := process.stdout.readline()):
            raise ValueError(f"{name} ended with code {process.wait()}; its output is above")
        return json.loads(line)

    with process:
        try:
            yield ask
        finally:
            process.kill()
