"""Host side of a toy KV kind: a fixed budget of pages per request, whose contents the device overwrites."""

import math
from dataclasses import dataclass
from typing import ClassVar

from serving.kvcache.groups import check_pool
from serving.kvcache.reservation import FullReservations, Reservations
from serving.kvcache.tree_pages import PathPages, TreePages


class BudgetReservations(FullReservations):
    """Reservations of a pool in which a request holds at most `budget_pages`."""

    def __init__(self, page_tok: int, budget_pages: int):
        super().__init__(page_tok)
        self.budget_pages = budget_pages

    def peak_pages(self, final_tok: int) -> int:
        return min(self.budget_pages, super().peak_pages(final_tok))


@dataclass(frozen=True)
class RingGroup:
    """A request takes pages until it has its budget, keeps them, and never gets another."""

    budget_pages: int
    num_pages: int
    name: ClassVar[str] = "ring"
    shareable: ClassVar[bool] = False  # what a page holds depends on how far its request has come

    def __post_init__(self) -> None:
        check_pool(self.num_pages)

    def first_needed_tok(self, position: int) -> int:
        return 0

    def next_release_tok(self, first_page: int, page_tok: int) -> float:
        return math.inf

    def table_pages(self, tokens: int, page_tok: int) -> int:
        return min(self.budget_pages, -(-tokens // page_tok))

    def capacity_tok(self, pages: int, page_tok: int) -> float:
        return math.inf if pages == self.budget_pages else pages * page_tok

    def hit_is_valid(self, end_tok: int, missing_tok: int) -> bool:
        return end_tok == 0

    def reservations(self, *, page_tok: int, span_tok: int, step_tok: int) -> Reservations:
        return BudgetReservations(page_tok, self.budget_pages)

    def tree_pages(self, index: int, page_tok: int) -> TreePages:
        return PathPages(index)
