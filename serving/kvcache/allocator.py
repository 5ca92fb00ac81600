"""Page allocators: which pages of a KV pool are free. Pure bookkeeping; the arrays live elsewhere.

Layers that own K/V fall into groups: all full-attention owners are one group, all owners with the same
window another. A group has one pool and one page table a request; page `p` means row `p` in the array of
every owner layer of the group. Page 0 is the null page: never handed out, always zero, what unused table
entries point to.

A page has exactly one holder at any time: the free list, one request, or one node of the prefix tree.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NULL_PAGE = 0


@dataclass(frozen=True)
class Group:
    """Owner layers that share a page table.

    Attributes:
      window: keys a query sees, itself included; None for the whole context.
      num_pages: physical pages in the pool, the null page included.
    """

    window: int | None
    num_pages: int

    def __post_init__(self):
        if self.num_pages < 2:
            raise ValueError(f"a pool of {self.num_pages} pages has none left beside the null page")

    def first_needed(self, position: int, page_tok: int) -> int:
        """The first logical page that a query at `position` (or any later one) can read."""
        return 0 if self.window is None else max(0, position - self.window + 1) // page_tok

    def pages_for(self, start: int, end: int, page_tok: int) -> int:
        """Pages a request holds while positions `start..end-1` are computed on top of everything before."""
        return -(-end // page_tok) - self.first_needed(start, page_tok)


class PageAllocator:
    """The free list of one group. Last freed, first handed out, so that hot pages stay hot."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))
        self._is_free = [True] * num_pages

    def __len__(self) -> int:
        """Pages free now."""
        return len(self._free)

    def take(self, n: int) -> list[int]:
        """`n` pages; the caller has checked that they are there (never a partial answer)."""
        if n > len(self._free):
            raise ValueError(f"{n} pages asked for, {len(self._free)} free")
        if n == 0:
            return []
        taken = self._free[-n:]
        del self._free[-n:]
        for page in taken:
            self._is_free[page] = False
        return taken

    def give(self, pages: Iterable[int]) -> None:
        """Takes pages back. Null pages are skipped; a page that is free already is a bug and raises."""
        for page in pages:
            if page == NULL_PAGE:
                continue
            if self._is_free[page]:
                raise ValueError(f"page {page} is freed twice")
            self._is_free[page] = True
            self._free.append(page)

    def free_pages(self) -> Sequence[int]:
        """The free list itself, for checks."""
        return tuple(self._free)
