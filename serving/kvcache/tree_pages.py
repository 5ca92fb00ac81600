"""The pages of one group in the prefix tree: how many it holds, which nobody reads, in which order they go.

The tree calls these objects for every group alike. `PathPages` suits groups that keep every token: a request
reads the whole path above its end, so a node is locked as one and leaves are evicted whole. `WindowPages`
suits groups that keep a window: a request reads single pages, so pages are counted and evicted one by one and
a node may have gaps.
"""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.radix_node import RadixNode, live, upward

SLACK = 64  # dead entries of an eviction line that are tolerated beside as many as are alive


class TreePages(ABC):
    """One group's pages in a tree.

    Attributes:
      held: pages in the tree.
      evictable: of those, pages that no request reads.
      may_have_gaps: whether a node's pages may be missing, so that not every end is a valid hit.
    """

    may_have_gaps: bool

    def __init__(self, index: int):
        self.index = index
        self.held = self.evictable = 0
        self._line: list[tuple[int, int, RadixNode]] = []  # nodes by last use, with lazy deletion

    # ---- nodes ----

    def attach(self, node: RadixNode) -> None:
        """Counts the pages of a new node, which nobody reads yet."""
        count = live(node.pages[self.index])
        self.held += count
        self.evictable += count

    def fill(self, node: RadixNode, place: int, page: int) -> None:
        """Puts a page where `node` had none."""
        node.pages[self.index][place] = page
        self.held += 1
        self.evictable += self.is_unread(node, place)

    # ---- readers ----

    @abstractmethod
    def new_readers(self, pages: int) -> list[int]:
        """Reader counts of a new node with so many pages."""

    @abstractmethod
    def is_unread(self, node: RadixNode, place: int) -> bool:
        """Whether no request reads the page at `place` of `node`."""

    @abstractmethod
    def count_path(self, node: RadixNode, sign: int) -> None:
        """`node` got its first (-1: evictable pages fewer) or lost its last (+1) lock."""

    @abstractmethod
    def lock(self, end: RadixNode, next_position: int) -> int:
        """Locks what a query at `next_position` reads on the path to `end`; the first page of that."""

    @abstractmethod
    def unlock(self, end: RadixNode, first: int, upto: int, offer: Callable[[RadixNode], None]) -> None:
        """Unlocks pages `first..upto-1` of the path to `end`, calling `offer` with each node passed."""

    @abstractmethod
    def first_locked(self, end: RadixNode, next_position: int) -> int:
        """The first page that a query at `next_position` still locks on the path to `end`."""

    # ---- eviction ----

    @abstractmethod
    def may_evict(self, node: RadixNode) -> bool:
        """Whether eviction from `node` would free a page of this group."""

    @abstractmethod
    def evicts_node(self, node: RadixNode) -> bool:
        """Whether evicting this group's pages of `node` removes the node itself."""

    @abstractmethod
    def drop(self, node: RadixNode) -> list[int]:
        """Takes the unread pages of `node` out of the tree and returns them."""

    def offer(self, node: RadixNode, nodes_alive: int) -> None:
        """Puts `node` in line for eviction if it qualifies and is not in line."""
        if not node.queued[self.index] and self.may_evict(node):
            node.queued[self.index] = True
            heapq.heappush(self._line, (node.used, node.seq, node))
            if len(self._line) > 2 * nodes_alive + SLACK:
                # A line that is never served would otherwise keep its dead entries.
                self._line[:] = [entry for entry in self._line if entry[2].alive]
                heapq.heapify(self._line)

    def next_in_line(self) -> tuple[RadixNode, bool] | None:
        """Takes the least recently used node out of the line; False beside it if it was used since."""
        if not self._line:
            return None
        used, _, node = heapq.heappop(self._line)
        node.queued[self.index] = False
        return node, node.used == used

    # ---- checks ----

    def check(self, nodes: Iterable[RadixNode]) -> None:
        """Asserts that the counts agree with the nodes."""
        nodes = list(nodes)
        assert self.held == sum(live(n.pages[self.index]) for n in nodes)
        unread = sum(
            page != NULL_PAGE and self.is_unread(n, i)
            for n in nodes
            for i, page in enumerate(n.pages[self.index])
        )
        assert self.evictable == unread
        assert all(r <= n.ref_count for n in nodes for r in n.readers[self.index])


class PathPages(TreePages):
    """Pages that are read from position 0 to the end of a hit; locked and evicted by whole nodes."""

    may_have_gaps = False

    def new_readers(self, pages: int) -> list[int]:
        return []

    def is_unread(self, node: RadixNode, place: int) -> bool:
        return node.ref_count == 0

    def count_path(self, node: RadixNode, sign: int) -> None:
        self.evictable += sign * len(node.pages[self.index])

    def lock(self, end: RadixNode, next_position: int) -> int:
        return 0

    def unlock(self, end: RadixNode, first: int, upto: int, offer: Callable[[RadixNode], None]) -> None:
        pass

    def first_locked(self, end: RadixNode, next_position: int) -> int:
        return 0

    def may_evict(self, node: RadixNode) -> bool:
        return node.ref_count == 0 and not node.children and node.parent is not None

    def evicts_node(self, node: RadixNode) -> bool:
        return True

    def drop(self, node: RadixNode) -> list[int]:
        pages = node.pages[self.index]
        self.held -= len(pages)
        self.evictable -= len(pages)
        return pages


class WindowPages(TreePages):
    """Pages that are read while a window overlaps them; each has its own count of readers.

    Args:
      first_needed_tok: position of a query -> the first position it reads.
    """

    may_have_gaps = True

    def __init__(self, index: int, page_tok: int, first_needed_tok: Callable[[int], int]):
        super().__init__(index)
        self._page_tok, self._first_needed_tok = page_tok, first_needed_tok

    def new_readers(self, pages: int) -> list[int]:
        return [0] * pages

    def is_unread(self, node: RadixNode, place: int) -> bool:
        return node.readers[self.index][place] == 0

    def count_path(self, node: RadixNode, sign: int) -> None:
        pass

    def lock(self, end: RadixNode, next_position: int) -> int:
        first = self.first_locked(end, next_position)
        self._count_readers(end, first, end.end // self._page_tok, +1)
        return first

    def unlock(self, end: RadixNode, first: int, upto: int, offer: Callable[[RadixNode], None]) -> None:
        for node in self._count_readers(end, first, upto, -1):
            offer(node)

    def first_locked(self, end: RadixNode, next_position: int) -> int:
        return min(self._first_needed_tok(next_position) // self._page_tok, end.end // self._page_tok)

    def may_evict(self, node: RadixNode) -> bool:
        return bool(self._unread(node))

    def evicts_node(self, node: RadixNode) -> bool:
        # A leaf without its window's pages can serve no hit.
        return not node.children and node.ref_count == 0

    def drop(self, node: RadixNode) -> list[int]:
        pages, places = node.pages[self.index], self._unread(node)
        freed = [pages[i] for i in places]
        self.held -= len(places)
        self.evictable -= len(places)
        for i in places:
            pages[i] = NULL_PAGE
        return freed

    def _unread(self, node: RadixNode) -> list[int]:
        pages, readers = node.pages[self.index], node.readers[self.index]
        return [i for i, page in enumerate(pages) if page != NULL_PAGE and not readers[i]]

    def _count_readers(self, end: RadixNode, first: int, upto: int, by: int) -> list[RadixNode]:
        """Adds `by` to the readers of pages `first..upto-1` on the path to `end`; the nodes passed."""
        passed = []
        for node in upward(end):
            offset = node.start // self._page_tok
            pages, readers = node.pages[self.index], node.readers[self.index]
            for i in range(max(0, first - offset), min(len(pages), upto - offset)):
                readers[i] += by
                if pages[i] != NULL_PAGE and readers[i] == max(0, by):  # 0 -> 1 or 1 -> 0
                    self.evictable -= by
            passed.append(node)
            if offset <= first:
                break
        return passed
