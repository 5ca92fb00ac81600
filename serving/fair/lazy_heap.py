"""A heap of names whose keys may change: least key first, mended when it is met."""

import heapq
from collections.abc import Callable, Hashable, Iterable
from typing import Any


class LazyMinHeap[Name: Hashable]:
    """The member with the least key, where `key(name)` reads the present state.

    Keys may grow silently: an entry found too small is corrected when it comes up. A key that shrank must be
    told by `push`. Members of equal keys are ordered by name.
    """

    def __init__(self, key: Callable[[Name], Any]):
        self._key = key
        self.clear()

    def clear(self, members: Iterable[Name] = ()) -> None:
        """Starts over with these members."""
        self._heap: list[tuple[Any, Name]] = []
        self._entry: dict[Name, tuple[Any, Name]] = {}
        for name in members:
            self.push(name)

    def push(self, name: Name) -> None:
        """Adds a member, or tells that its key may be smaller now."""
        key = self._key(name)
        if name not in self._entry or key < self._entry[name][0]:
            entry = self._entry[name] = (key, name)
            heapq.heappush(self._heap, entry)
            if len(self._heap) > 64 + 4 * len(self._entry):
                self._heap = list(self._entry.values())
                heapq.heapify(self._heap)

    def discard(self, name: Name) -> None:
        self._entry.pop(name, None)

    def top(self) -> Name | None:
        while self._heap:
            entry = self._heap[0]
            name = entry[1]
            if self._entry.get(name) is not entry:
                heapq.heappop(self._heap)
                continue
            now = self._key(name)
            if now == entry[0]:
                return name
            mended = self._entry[name] = (now, name)
            heapq.heapreplace(self._heap, mended)
        return None

    def __contains__(self, name: Name) -> bool:
        return name in self._entry

    def __len__(self) -> int:
        return len(self._entry)
