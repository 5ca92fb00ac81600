"""Another program to measure against: a process of its own environment, met through JSON lines."""

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

type Asked = Callable[..., dict[str, Any]]


@contextmanager
def peer(name: str, command: Sequence[str]) -> Iterator[Asked]:
    """Starts the process, which the block's end kills; call what is yielded with the fields of a question.

    Args:
      name: what errors call it.

    Raises:
      ValueError: it cannot be started, or it ended.
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
            raise ValueError(f"{name} ended with code {process.wait()}; its words are above")
        return json.loads(line)

    with process:
        try:
            yield ask
        finally:
            process.kill()
