"""The page allocator: which pages of a KV pool are free. Pure bookkeeping; the arrays live elsewhere.

Layers that own K/V fall into groups (`serving.kvcache.groups`). A group has one pool, and one page table per
request; page `p` means row `p` in the array of every owner layer of the group. Page 0 is the null page: never
allocated, always zero, what unused table entries point to.

A page has exactly one holder at any time: the free list, one request, or one node of the prefix tree.
"""

from collections.abc import Iterable, Sequence

NULL_PAGE = 0


class PageAllocator:
    """The free list of one pool. Last freed, first allocated, so that hot pages stay hot."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))
        self._is_free = [True] * num_pages

    def __len__(self) -> int:
        """Pages free now."""
        return len(self._free)

    def allocate(self, n: int) -> list[int]:
        """Takes `n` pages off the free list.

        Raises:
          ValueError: fewer are free.
        """
        if n > len(self._free):
            raise ValueError(f"{n} pages asked for, {len(self._free)} free")
        if n == 0:
            return []
        taken = self._free[-n:]
        del self._free[-n:]
        for page in taken:
            self._is_free[page] = False
        return taken

    def free(self, pages: Iterable[int]) -> None:
        """Puts pages back on the free list; null pages are skipped.

        Raises:
          ValueError: a page is free already.
        """
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
