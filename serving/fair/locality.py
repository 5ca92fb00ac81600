"""Waiting requests ordered by how much of their prompt the prefix cache holds.

Longest match first, ties by arrival. With aging, every admission adds `aging_tok` to the match of all
waiting requests. All age alike, so the order is that of the fixed key `match - aging_tok * (admissions
before arrival)`.

Re-matching is incremental if the cache reports what changed: a pass costs the requests touched since the last
pass, not all waiting ones.

Source: SGLang's longest-prefix-match policy, which has no aging and falls back to FCFS above 128 waiting
requests.
"""

import heapq
from collections.abc import Callable, Iterable

from serving.fair.policy import Match
from serving.request import ClientId, RequestId, RequestInfo

type Changed = Callable[[], Iterable[RequestId] | None]
"""Returns the waiting requests whose match may differ since the last call; None: any may."""
type Key = tuple[bool, int, int, RequestId]


class LocalityOrder:
    """Finds the best waiting request among the clients that are open (see `open`)."""

    def __init__(self, match: Match, changed: Changed | None = None, aging_tok: int = 0) -> None:
        self.match, self.aging_tok = match, aging_tok
        self.changed: Changed | None = changed or getattr(match, "changed", None)
        self.clear()

    def clear(self) -> None:
        self._waiting: dict[RequestId, tuple[RequestInfo, int]] = {}
        self._key_of: dict[RequestId, Key] = {}
        self._heaps: dict[ClientId, list[Key]] = {}
        self._open: set[ClientId] = set()
        self._best: list[Key] = []  # at least the best key of every open client

    def add(self, request: RequestInfo, admissions_before: int, *, first: bool = False) -> None:
        """Adds a waiting request.

        Args:
          admissions_before: admissions before its arrival.
          first: ahead of all requests without this mark (preempted requests).
        """
        self._waiting[request.id] = request, admissions_before
        self._push_key(
            (not first, self.aging_tok * admissions_before - self.match(request), request.seq, request.id),
            request.client,
        )

    def remove(self, request: RequestInfo, emptied: bool) -> None:
        del self._waiting[request.id], self._key_of[request.id]
        if emptied:
            del self._heaps[request.client]
            self._open.discard(request.client)
        elif request.client in self._open:
            heapq.heappush(self._best, self._head(request.client))

    def open(self, client: ClientId) -> None:
        """Allows the client's requests to be picked. The client must have one waiting."""
        if client not in self._open:
            self._open.add(client)
            heapq.heappush(self._best, self._head(client))

    def close(self, client: ClientId) -> None:
        """Keeps the client's requests from being picked until `open`."""
        self._open.discard(client)

    def best(self) -> RequestInfo | None:
        """The request with the smallest key among open clients, or None."""
        while self._best:
            key = self._best[0]
            request, _ = self._waiting.get(key[3], (None, 0))
            if request is None or request.client not in self._open or self._key_of[request.id] != key:
                heapq.heappop(self._best)
            else:
                return request
        return None

    def refresh(self) -> None:
        """Updates the keys to the current matches."""
        ids = self.changed() if self.changed else None
        for id in list(self._waiting) if ids is None else ids:
            if id in self._waiting:
                self._rematch(*self._waiting[id])

    def _rematch(self, request: RequestInfo, admissions_before: int) -> None:
        old = self._key_of[request.id]
        new = (old[0], self.aging_tok * admissions_before - self.match(request), *old[2:])
        if new != old:
            self._push_key(new, request.client)
            if new > old and request.client in self._open:  # another request may be the client's best now
                heapq.heappush(self._best, self._head(request.client))

    def _push_key(self, key: Key, client: ClientId) -> None:
        self._key_of[key[3]] = key
        heap = self._heaps.setdefault(client, [])
        heapq.heappush(heap, key)
        if client in self._open and heap[0] is key:
            heapq.heappush(self._best, key)
        if len(heap) > 64 + 4 * len(self._waiting):
            self._heaps[client] = self._compacted(heap)
        if len(self._best) > 64 + 4 * len(self._waiting):
            self._best = self._compacted(self._best)

    def _compacted(self, heap: list[Key]) -> list[Key]:
        """The heap without stale keys."""
        kept = [key for key in set(heap) if self._key_of.get(key[3]) == key]
        heapq.heapify(kept)
        return kept

    def _head(self, client: ClientId) -> Key:
        heap = self._heaps[client]
        while self._key_of.get(heap[0][3]) != heap[0]:
            heapq.heappop(heap)
        return heap[0]
