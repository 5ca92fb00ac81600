"""Waiting requests that are told when the prefix tree may answer them differently.

A policy that orders by locality would have to ask for every waiting request's match at every step. Instead a
request is noted where its match ends: at a node and the page that would carry it on. Only what happens there,
or a change whose effect would take a search to find (`touch_all`), makes the policy ask again.
"""

from collections.abc import Hashable
from typing import Protocol


class WatchPoint(Protocol):
    """A node of the tree as the watcher sees it.

    Attributes:
      watchers: ids that wait here, by the page that would carry them on; None where their match ends within
        the node.
    """

    watchers: dict[Hashable | None, set[str]]


class MatchWatcher:
    """Which waiting requests' matches may have changed."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[WatchPoint, Hashable | None]] = {}
        self._touched: dict[str, None] | None = {}  # in order; None: all of them

    def put(self, id: str, point: WatchPoint, head: Hashable | None) -> None:
        """Notes that `id` waits at `point` for the page `head`, and nowhere else."""
        self.drop(id)
        point.watchers.setdefault(head, set()).add(id)
        self._at[id] = point, head

    def drop(self, id: str) -> None:
        """Forgets `id`, if it is noted."""
        point, head = self._at.pop(id, (None, None))
        if point is not None:
            point.watchers[head].discard(id)
            if not point.watchers[head]:
                del point.watchers[head]

    def touch(self, point: WatchPoint, head: Hashable | None) -> None:
        """Marks those who wait at `point` for `head`. Sorted: the order must not depend on hashing."""
        if self._touched is not None and head in point.watchers:
            self._touched.update(dict.fromkeys(sorted(point.watchers[head])))

    def touch_all(self) -> None:
        """Marks every request: any match may have changed."""
        self._touched = None

    def take(self) -> list[str] | None:
        """Requests marked since the last call; None: all of them."""
        touched, self._touched = self._touched, {}
        return None if touched is None else list(touched)
