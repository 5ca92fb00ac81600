"""Waiting requests in order of how much of their prompt the prefix cache holds.

Longest match first, ties by arrival. With aging, every admission adds `aging_tok` to the match of all who
still wait; since all age alike, the order is that of the fixed key `match - aging_tok * (admissions before
arrival)`.

Re-matching is incremental where the cache says what changed: a pass costs the requests touched since the last
one, not all that wait.

Source: SGLang's longest-prefix-match policy, which has no aging and gives up above 128 waiting requests.
"""

import heapq
from collections.abc import Callable, Iterable

from serving.fair.policy import Match
from serving.request import ClientId, RequestId, RequestInfo

type Changed = Callable[[], Iterable[RequestId] | None]
"""Waiting requests whose match may differ since the last call; None: any may."""
type Key = tuple[bool, int, int, RequestId]


class LocalityOrder:
    """The best waiting request among clients that are open (see `open`)."""

    def __init__(self, match: Match, changed: Changed | None = None, aging_tok: int = 0):
        self.match, self.aging_tok = match, aging_tok
        self.changed: Changed | None = changed or getattr(match, "changed", None)
        self.clear()

    def clear(self) -> None:
        self._asks: dict[RequestId, tuple[RequestInfo, int]] = {}
        self._key_of: dict[RequestId, Key] = {}
        self._heaps: dict[ClientId, list[Key]] = {}
        self._open: set[ClientId] = set()
        self._best: list[Key] = []  # at least the best key of every open client

    def add(self, request: RequestInfo, born: int, *, first: bool = False) -> None:
        """`born`: admissions before its arrival. `first`: ahead of all that are not (preempted requests)."""
        self._asks[request.id] = request, born
        self._enter(
            (not first, self.aging_tok * born - self.match(request), request.seq, request.id), request.client
        )

    def remove(self, request: RequestInfo, emptied: bool) -> None:
        del self._asks[request.id], self._key_of[request.id]
        if emptied:
            del self._heaps[request.client]
            self._open.discard(request.client)
        elif request.client in self._open:
            heapq.heappush(self._best, self._head(request.client))

    def open(self, client: ClientId) -> None:
        """The client's requests may be picked. The client must have one waiting."""
        if client not in self._open:
            self._open.add(client)
            heapq.heappush(self._best, self._head(client))

    def close(self, client: ClientId) -> None:
        self._open.discard(client)

    def best(self) -> RequestInfo | None:
        while self._best:
            key = self._best[0]
            request, _ = self._asks.get(key[3], (None, 0))
            if request is None or request.client not in self._open or self._key_of[request.id] != key:
                heapq.heappop(self._best)
            else:
                return request
        return None

    def refresh(self) -> None:
        """Takes the matches as they are now."""
        ids = self.changed() if self.changed else None
        for id in list(self._asks) if ids is None else ids:
            if id in self._asks:
                self._rematch(*self._asks[id])

    def _rematch(self, request: RequestInfo, born: int) -> None:
        old = self._key_of[request.id]
        new = (old[0], self.aging_tok * born - self.match(request), *old[2:])
        if new != old:
            self._enter(new, request.client)
            if new > old and request.client in self._open:  # the client's best may be another one now
                heapq.heappush(self._best, self._head(request.client))

    def _enter(self, key: Key, client: ClientId) -> None:
        self._key_of[key[3]] = key
        heap = self._heaps.setdefault(client, [])
        heapq.heappush(heap, key)
        if client in self._open and heap[0] is key:
            heapq.heappush(self._best, key)
        if len(heap) > 64 + 4 * len(self._asks):
            self._heaps[client] = self._valid(heap)
        if len(self._best) > 64 + 4 * len(self._asks):
            self._best = self._valid(self._best)

    def _valid(self, heap: list[Key]) -> list[Key]:
        """The heap without what re-matching left behind."""
        kept = [key for key in set(heap) if self._key_of.get(key[3]) == key]
        heapq.heapify(kept)
        return kept

    def _head(self, client: ClientId) -> Key:
        heap = self._heaps[client]
        while self._key_of.get(heap[0][3]) != heap[0]:
            heapq.heappop(heap)
        return heap[0]
