"""Requests per minute: refuses a client's requests beyond a fixed number in any window of time.

Accepted requests are served in order of arrival. Not work-conserving: it refuses even if the server is idle.
"""

from collections import deque
from typing import Any

from serving.fair.fcfs import Fcfs
from serving.request import ClientId, RequestInfo


class Rpm(Fcfs):
    """`Fcfs` with a rate limit per client."""

    def __init__(self, *, limit: int, window_s: float = 60.0, **options: Any) -> None:
        """`limit`: maximum number of requests accepted per client in any half-open window of `window_s`."""
        super().__init__(**options)
        if limit < 1 or window_s <= 0:
            raise ValueError(f"limit is {limit} per {window_s} s; it must be at least 1 per window above 0 s")
        self.limit, self.window_s = limit, window_s
        self._accepted: dict[ClientId, deque[float]] = {}
        self._stale_s = window_s  # when the windows of idle clients are dropped next

    def _accepts(self, request: RequestInfo, now_s: float) -> bool:
        if now_s >= self._stale_s:
            self._drop_old(now_s)
        times = self._accepted.setdefault(request.client, deque())
        while times and times[0] <= now_s - self.window_s:
            times.popleft()
        if len(times) >= self.limit:
            return False
        times.append(now_s)
        return True

    def _drop_old(self, now_s: float) -> None:
        kept = {c: t for c, t in self._accepted.items() if t and t[-1] > now_s - self.window_s}
        self._accepted, self._stale_s = kept, now_s + self.window_s

    def snapshot(self) -> dict[str, Any]:
        accepted = {client: list(times) for client, times in self._accepted.items()}
        return super().snapshot() | {"accepted": accepted, "stale_s": self._stale_s}

    def restore(self, state: dict[str, Any]) -> None:
        self._accepted = {client: deque(times) for client, times in state["accepted"].items()}
        self._stale_s = state["stale_s"]
        super().restore(state)
