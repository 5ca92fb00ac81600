"""What running requests have reserved of a page pool, and what they may borrow beyond it.

A full pool reserves every page of a request's final length. What is left to reserve is what is free or
evictable, less what is reserved and not taken yet. A sliding pool lets pages go, each request at its own
time:

A request that decodes one token per step reads its window, at the worst alignment to page boundaries: that
many pages are *reserved* from admission to its end. What a chunk of its prompt, or several decode steps in
one call, take beyond is *borrowed* until the window has moved on. With `total` pages in the pool, `held`
pages per request (a page that two requests read counts for both) and a common `reserve`, two rules decide:

    borrow   a request gets pages beyond its reservation only while  sum(max(reserved, held)) <= total
    admit    a newcomer starts only if, it included,  sum(reserved) + min(reserve, sum(borrowable)) <= total,
             where `borrowable` is what a whole chunk takes beyond the reservation of a request that still
             prefills; and only if its reserved and borrowable pages, added to the sum of `borrow`, stay
             within `total`

**Decode is never starved.** Both rules keep sum(max(reserved, held)) <= total; taking within a reservation
and releasing do not raise it. A page that is neither free nor evictable is held by a request, so at least
`total - sum(held) >= sum(max(reserved, held) - held)` pages are available: enough for every request up to
its reservation, whatever the others do in the same step.

**A prefill always proceeds.** While any request prefills, rows decode one token per step (`Scheduler.plan`),
so a few steps later no request holds more than its reservation when a step begins. Then the first in line
finds `total - sum(reserved) >= min(reserve, sum(borrowable))` to borrow, which is at least its own share; the
others get what is left, or wait a step. No request that can run at all waits for ever: alone, its reserved
and borrowable pages are its peak.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pallas_kernels import masks


def max_pages_spanned(tokens: int, page_tok: int) -> int:
    """Pages that `tokens` consecutive tokens touch at the worst alignment to page boundaries."""
    return -(-(tokens - 1) // page_tok) + 1 if tokens > 0 else 0


@dataclass(slots=True)
class Reservation:
    """One request's pages of one pool.

    Attributes:
      reserved: pages it can have at any time.
      borrowable: pages a chunk may take beyond that; 0 once its prompt is computed.
      held: pages it holds or reads now.
      guaranteed: the reservation is kept. Otherwise every request takes what is there (optimistic admission).
    """

    reserved: int
    borrowable: int
    held: int
    guaranteed: bool

    @property
    def outstanding(self) -> int:
        """Pages reserved and not held yet."""
        return max(0, self.reserved - self.held)

    @property
    def borrowed(self) -> int:
        """Pages held beyond the reservation."""
        return max(0, self.held - self.reserved)


class Reservations(Protocol):
    """The sums of one pool. `available` is how many of its pages are free or evictable now."""

    def peak_pages(self, final_tok: int) -> int:
        """The most pages that a request of `final_tok` tokens holds at any time."""
        ...

    def reserve(self, prefill_tok: int, final_tok: int, held: int, guaranteed: bool) -> Reservation:
        """What a request needs that computes `prefill_tok` tokens in chunks; not added yet."""
        ...

    def room(self, available: int) -> int:
        """Pages that can still be reserved."""
        ...

    def can_admit(self, reservation: Reservation, available: int) -> bool:
        """Whether a new request may start with this reservation."""
        ...

    def can_grow(self, reservation: Reservation, pages: int, available: int) -> bool:
        """Whether a running request may take `pages` more."""
        ...

    def add(self, reservation: Reservation, sign: int = +1) -> None:
        """Adds a request to the sums; with -1 takes it out again, so that it may change."""
        ...

    def check(self, reservations: Iterable[Reservation]) -> None:
        """Asserts that the sums are those of `reservations`."""
        ...


class FullReservations:
    """Reservations of a pool in which a request keeps all of its tokens."""

    def __init__(self, page_tok: int):
        self.page_tok = page_tok
        self.outstanding = 0

    def peak_pages(self, final_tok: int) -> int:
        return -(-final_tok // self.page_tok)

    def reserve(self, prefill_tok: int, final_tok: int, held: int, guaranteed: bool) -> Reservation:
        return Reservation(self.peak_pages(final_tok), 0, held, guaranteed)

    def room(self, available: int) -> int:
        return available - self.outstanding

    def can_admit(self, reservation: Reservation, available: int) -> bool:
        return reservation.outstanding <= self.room(available)

    def can_grow(self, reservation: Reservation, pages: int, available: int) -> bool:
        return pages <= available

    def add(self, reservation: Reservation, sign: int = +1) -> None:
        self.outstanding += sign * reservation.outstanding

    def check(self, reservations: Iterable[Reservation]) -> None:
        assert self.outstanding == sum(r.outstanding for r in reservations)


class SlidingReservations:
    """Reservations of a pool in which a request keeps its window.

    Args:
      total: pages of the pool, without the null page.
      span_tok: the most tokens one step adds to a request.
      step_tok: prompt tokens of all requests in one step.
    """

    def __init__(self, window: int, total: int, *, page_tok: int, span_tok: int, step_tok: int):
        self.window, self.total, self.page_tok, self.span_tok = window, total, page_tok, span_tok
        chunks, rest = divmod(max(span_tok, step_tok), span_tok)
        self.common_reserve = chunks * self._beyond_window(span_tok) + self._beyond_window(rest)
        self.reserved = self.borrowed = self.borrowable = 0

    def _max_held(self, tokens: int, span_tok: int) -> int:
        whole = -(-tokens // self.page_tok)
        return min(whole, max_pages_spanned(masks.positions_seen(span_tok, self.window), self.page_tok))

    def _beyond_window(self, chunk_tok: int) -> int:
        seen = masks.positions_seen(max(1, chunk_tok), self.window)
        return max_pages_spanned(seen, self.page_tok) - max_pages_spanned(self.window, self.page_tok)

    def peak_pages(self, final_tok: int) -> int:
        return self._max_held(final_tok, self.span_tok)

    def reserve(self, prefill_tok: int, final_tok: int, held: int, guaranteed: bool) -> Reservation:
        reserved = self._max_held(final_tok, 1)
        beyond = max(0, self._max_held(prefill_tok, self.span_tok) - reserved)
        return Reservation(reserved, beyond, held, guaranteed)

    def room(self, available: int) -> int:
        return self.total - self.reserved - max(self.borrowed, min(self.common_reserve, self.borrowable))

    def can_admit(self, reservation: Reservation, available: int) -> bool:
        more = reservation.borrowable
        kept = max(self.borrowed + more, min(self.common_reserve, self.borrowable + more))
        return self.reserved + reservation.reserved + kept <= self.total

    def can_grow(self, reservation: Reservation, pages: int, available: int) -> bool:
        if not reservation.guaranteed:
            return pages <= available
        more = max(0, reservation.held + pages - reservation.reserved) - reservation.borrowed
        return more == 0 or self.reserved + self.borrowed + more <= self.total

    def add(self, reservation: Reservation, sign: int = +1) -> None:
        self.reserved += sign * reservation.reserved
        self.borrowable += sign * reservation.borrowable
        self.borrowed += sign * reservation.borrowed

    def check(self, reservations: Iterable[Reservation]) -> None:
        reservations = list(reservations)
        assert self.reserved == sum(r.reserved for r in reservations)
        assert self.borrowable == sum(r.borrowable for r in reservations)
        assert self.borrowed == sum(r.borrowed for r in reservations)
        kept = self.reserved + self.borrowed <= self.total
        assert kept or not all(r.guaranteed for r in reservations), (
            "more is reserved and borrowed than exists"
        )
