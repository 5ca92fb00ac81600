"""A heap whose keys may change: smallest key first, corrected lazily."""

import heapq
from collections.abc import Callable, Hashable, Iterable
from typing import Any


class LazyMinHeap[Name: Hashable]:
    """Finds the member with the smallest key, where `key(name)` reads the current state.

    Keys may grow without notice: a stale entry is corrected when it reaches the top. A key that shrank must
    be announced by `push`. Members of equal keys are ordered by name.
    """

    def __init__(self, key: Callable[[Name], Any]) -> None:
        self._key = key
        self.clear()

    def clear(self, members: Iterable[Name] = ()) -> None:
        """Replaces all members by these."""
        self._heap: list[tuple[Any, Name]] = []
        self._entry_of: dict[Name, tuple[Any, Name]] = {}
        for name in members:
            self.push(name)

    def push(self, name: Name) -> None:
        """Adds a member, or announces that its key may have shrunk."""
        key, held = self._key(name), self._entry_of.get(name)
        if held is None or key < held[0]:
            entry = self._entry_of[name] = (key, name)
            heapq.heappush(self._heap, entry)
            if len(self._heap) > 64 + 4 * len(self._entry_of):
                self._heap = list(self._entry_of.values())
                heapq.heapify(self._heap)

    def discard(self, name: Name) -> None:
        self._entry_of.pop(name, None)

    def top(self) -> Name | None:
        """The member with the smallest key, or None if there is none."""
        while self._heap:
            entry = self._heap[0]
            name = entry[1]
            if self._entry_of.get(name) is not entry:
                heapq.heappop(self._heap)
                continue
            key = self._key(name)
            if key == entry[0]:
                return name
            corrected = self._entry_of[name] = (key, name)
            heapq.heapreplace(self._heap, corrected)
        return None

    def __contains__(self, name: Name) -> bool:
        return name in self._entry_of

    def __len__(self) -> int:
        return len(self._entry_of)
