"""Live lines for long serving runs: requests done, tokens a second, what is being compiled."""

import time
from typing import Self

from rich.progress import BarColumn, Progress, TimeElapsedColumn

from serving.request import Delta


class RequestLines:
    """Several progress lines, one a run; a context manager."""

    def __init__(self):
        self._progress = Progress(
            "{task.description:<12}",
            BarColumn(),
            "{task.completed}/{task.total} requests",
            TimeElapsedColumn(),
            "{task.fields[note]}",
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc) -> None:
        self._progress.stop()

    def add(self, name: str, requests: int) -> "RequestLine":
        return RequestLine(self._progress, self._progress.add_task(name, total=requests, note="starting"))


class RequestLine:
    """One run's line; its methods are the callbacks of `offline.run`."""

    def __init__(self, progress: Progress, task):
        self._progress, self._task, self._tokens = progress, task, 0
        self._began_s = time.monotonic()

    def compiled(self, name: str, seconds: float) -> None:
        self._began_s = time.monotonic()
        self._progress.update(self._task, note=f"compiled {name} in {seconds:.1f} s")

    def delta(self, delta: Delta) -> None:
        self._tokens += len(delta.ids)
        rate = self._tokens / (time.monotonic() - self._began_s)
        done = delta.output is not None
        self._progress.update(self._task, advance=done, note=f"{rate:,.0f} output tokens/s")
