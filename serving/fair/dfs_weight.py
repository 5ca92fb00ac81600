"""Depth-first order of the prefix tree, the branch with the most waiting requests first.

Requests that share a prefix run one after the other, while it is cached. No bound on service exists.

A pass orders all waiting requests once, in O(requests x depth). The order is valid until time advances or a
request arrives.

Source: SGLang's policy of the same name.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.policy import Match
from serving.request import RequestInfo

type Path = Callable[[RequestInfo], Sequence[Hashable]]
"""Returns the prefix tree's nodes along a waiting request's prompt, from the root down."""


class DfsWeight(PolicyBase):
    """Serves the branch of the prefix tree with the most waiting requests."""

    def __init__(self, *, match: Match | None = None, path: Path | None = None, **options: Any) -> None:
        """Needs `path`, or a `match` that has this attribute (see `Match`)."""
        super().__init__(**{"cost": "extend"} | options)
        found = path or getattr(match, "path", None)
        if found is None:
            raise ValueError("policy 'dfs_weight' needs path=, or a match= with a path attribute")
        self.path: Path = found
        self._order: list[RequestInfo] = []  # in reverse
        self._ordered_s: float | None = None

    def pick(self, now_s: float) -> RequestInfo | None:
        if now_s != self._ordered_s:
            self._order, self._ordered_s = self._depth_first()[::-1], now_s
        while self._order and self.backlog.requests.get(self._order[-1].id) is not self._order[-1]:
            self._order.pop()
        return self._order[-1] if self._order else None

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _depth_first(self) -> list[RequestInfo]:
        weight: Counter[Hashable] = Counter()
        ends_at: dict[Hashable, list[RequestInfo]] = {}
        below: dict[Hashable, dict[Hashable, None]] = {}
        for request in sorted(self.backlog.requests.values(), key=lambda request: request.seq):
            path = [None, *self.path(request)]
            ends_at.setdefault(path[-1], []).append(request)
            weight.update(path)
            for parent, child in pairwise(path):
                below.setdefault(parent, {})[child] = None
        order: list[RequestInfo] = []
        todo: list[tuple[bool, Hashable]] = [(False, None)]
        while todo:
            visited, node = todo.pop()
            if visited:
                order += ends_at.get(node, [])
            else:  # its children first, heaviest first, ties by arrival
                todo.append((True, node))
                children = sorted(below.get(node, ()), key=lambda child: -weight[child])
                todo += [(False, child) for child in reversed(children)]
        return order

    def _on_enqueue(self, charge: Charge) -> None:
        self._ordered_s = None

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        pass

    def _rebuild(self) -> None:
        self._ordered_s = None
