"""Kinds of page groups: what a request keeps of its keys and values, and what it may let go of.

All owner layers of one kind form a group with one page pool and one page table. The manager, the prefix tree,
reservations and sizing ask the group; none of them knows which kinds exist. A further kind is a class with
these methods, its `Reservations` and its `TreePages`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pallas_kernels import masks
from serving.kvcache.reservation import FullReservations, Reservations, SlidingReservations, max_pages_spanned
from serving.kvcache.tree_pages import PathPages, TreePages, WindowPages


class KVGroup(Protocol):
    """Owner layers that share a page table.

    Attributes:
      name: what messages and statistics call the pool.
      num_pages: physical pages in the pool, the null page included.
      shareable: whether a page of it means the same to every request with the same prefix, so that the prefix
        tree may hold it.
    """

    name: ClassVar[str]
    shareable: ClassVar[bool]

    @property
    def num_pages(self) -> int: ...

    def first_needed_tok(self, position: int) -> int:
        """The first position that a query at `position`, or any later one, can read."""
        ...

    def next_release_tok(self, first_page: int, page_tok: int) -> float:
        """From how many computed tokens on page `first_page` is no longer needed; infinite if always."""
        ...

    def table_pages(self, tokens: int, page_tok: int) -> int:
        """Entries of a page table that holds `tokens` tokens."""
        ...

    def capacity_tok(self, pages: int, page_tok: int) -> float:
        """Tokens that a table of `pages` entries holds before it must grow."""
        ...

    def hit_is_valid(self, end_tok: int, missing_tok: int) -> bool:
        """Whether a prefix hit may end at `end_tok` if the page that ends at `missing_tok` is missing.

        `missing_tok` is the end of the last missing page before `end_tok`; 0 if none is missing.
        """
        ...

    def reservations(self, *, page_tok: int, span_tok: int, step_tok: int) -> Reservations:
        """The reservations of this pool, no request running yet."""
        ...

    def tree_pages(self, index: int, page_tok: int) -> TreePages:
        """This group's part of a prefix tree; `index` is its place among the groups."""
        ...


@dataclass(frozen=True)
class FullGroup:
    """A request keeps every token until it ends."""

    num_pages: int
    name: ClassVar[str] = "full"
    shareable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pool(self.num_pages)

    def first_needed_tok(self, position: int) -> int:
        return 0

    def next_release_tok(self, first_page: int, page_tok: int) -> float:
        return math.inf

    def table_pages(self, tokens: int, page_tok: int) -> int:
        return -(-tokens // page_tok)

    def capacity_tok(self, pages: int, page_tok: int) -> float:
        return pages * page_tok

    def hit_is_valid(self, end_tok: int, missing_tok: int) -> bool:
        return missing_tok == 0

    def reservations(self, *, page_tok: int, span_tok: int, step_tok: int) -> Reservations:
        return FullReservations(page_tok)

    def tree_pages(self, index: int, page_tok: int) -> TreePages:
        return PathPages(index)


@dataclass(frozen=True)
class SlidingGroup:
    """A request keeps the last `window` tokens, the newest query's own included."""

    window: int
    num_pages: int
    name: ClassVar[str] = "sliding"
    shareable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pool(self.num_pages)

    def first_needed_tok(self, position: int) -> int:
        return masks.first_seen(position, self.window)

    def next_release_tok(self, first_page: int, page_tok: int) -> float:
        return masks.unseen_from((first_page + 1) * page_tok - 1, self.window)

    def table_pages(self, tokens: int, page_tok: int) -> int:
        return -(-tokens // page_tok)

    def capacity_tok(self, pages: int, page_tok: int) -> float:
        return pages * page_tok

    def hit_is_valid(self, end_tok: int, missing_tok: int) -> bool:
        return missing_tok <= masks.first_seen(end_tok, self.window)

    def reservations(self, *, page_tok: int, span_tok: int, step_tok: int) -> Reservations:
        total = self.num_pages - 1
        return SlidingReservations(
            self.window, total, page_tok=page_tok, span_tok=span_tok, step_tok=step_tok
        )

    def tree_pages(self, index: int, page_tok: int) -> TreePages:
        return WindowPages(index, page_tok, self.first_needed_tok)

    def peak_pages(self, span_tok: int, page_tok: int) -> int:
        """The most pages that one request of any length holds while a step adds `span_tok` tokens to it."""
        return max_pages_spanned(masks.positions_seen(span_tok, self.window), page_tok)


def check_pool(num_pages: int) -> None:
    """Raises ValueError unless a pool has at least one page beside the null page."""
    if num_pages < 2:
        raise ValueError(f"a pool of {num_pages} pages has none left beside the null page")
