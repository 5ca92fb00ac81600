"""Waiting requests that want to know when the prefix tree may answer them differently.

A policy that orders by locality would have to ask for every waiting request's match at every step. Instead a
request is noted where its match ends: at a node and the page that would carry it on. Only what happens there,
or what nobody can follow (see `everybody`), makes it ask again.
"""

from collections.abc import Hashable
from typing import Protocol


class WatchPoint(Protocol):
    """A node of the tree, as far as those who wait at it go: their ids by the page that would carry them on;
    None where their match ends within the node."""

    watchers: dict[Hashable | None, set[str]]


class MatchWatcher:
    def __init__(self):
        self._at: dict[str, tuple[WatchPoint, Hashable | None]] = {}
        self._touched: dict[str, None] | None = {}  # in order; None: all of them

    def put(self, id: str, place: WatchPoint, head: Hashable | None) -> None:
        """`id` waits at `place` for the page `head`, and nowhere else."""
        self.drop(id)
        place.watchers.setdefault(head, set()).add(id)
        self._at[id] = place, head

    def drop(self, id: str) -> None:
        place, head = self._at.pop(id, (None, None))
        if place is not None:
            place.watchers[head].discard(id)
            if not place.watchers[head]:
                del place.watchers[head]

    def wake(self, place: WatchPoint, head: Hashable | None) -> None:
        """Those who wait there look again. Sorted: the order must not depend on hashing."""
        if self._touched is not None and head in place.watchers:
            self._touched.update(dict.fromkeys(sorted(place.watchers[head])))

    def everybody(self) -> None:
        """Any match may have changed, and finding out whose would be a search."""
        self._touched = None

    def take(self) -> list[str] | None:
        """Who may have to look again since this was called last; None: anybody."""
        touched, self._touched = self._touched, {}
        return None if touched is None else list(touched)
