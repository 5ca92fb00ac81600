"""What running requests are promised of a page pool, and what is lent them beyond that.

A full pool promises a request every page of its final length; what is left to promise is what is free or
evictable, less what is promised and not taken yet. A sliding pool lets pages go, each request in its time:

A request that decodes one token a step reads its window, which lies on the page grid as badly as can be: so
many pages it is *promised* from admission to its end. What a chunk of its prompt, or several decode steps in
one call, take beyond is *lent* until the window has moved on. With `total` pages in the pool, `held` pages a
request (a page that two requests read counts for both) and a common `reserve`, two rules decide:

    lend     a request gets pages beyond its promise only while  sum(max(promise, held)) <= total
    admit    a newcomer starts only if, it included,  sum(promise) + min(reserve, sum(loan)) <= total,
             where `loan` is what a whole chunk takes beyond the promise of a request that still prefills;
             and only if its promise and its loan, added to the sum of `lend`, stay within `total`

**Decode is never starved.** Both rules keep sum(max(promise, held)) <= total; taking within a promise and
letting go do not raise it. A page that is neither free nor evictable is held by somebody, so at least
`total - sum(held) >= sum(max(promise, held) - held)` are to be had: enough for everyone up to its promise,
whatever the others do in the same step.

**A prefill always goes on.** While anybody prefills, rows decode one token a step (`Scheduler.plan`), so a
few steps later nobody holds more than its promise when a step begins. Then the first in line finds
`total - sum(promise) >= min(reserve, sum(loan))` to be lent, which is at least its own loan; the others get
what is left, or wait a step. Nobody who can run at all waits for ever: alone, promise and loan are its peak.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from serving.kvcache.allocator import Group


def max_pages_spanned(tokens: int, page_tok: int) -> int:
    """Pages that so many consecutive tokens touch, lying on the page grid as badly as can be."""
    return -(-(tokens - 1) // page_tok) + 1 if tokens > 0 else 0


@dataclass(slots=True)
class Reservation:
    """One request's pages of one pool.

    Attributes:
      promise: pages it can have at any time.
      loan: pages a chunk may take beyond that; 0 once its prompt is computed.
      held: pages it holds or reads now.
      firm: the promise is kept. Otherwise everybody takes what is there (optimistic admission).
    """

    promise: int
    loan: int
    held: int
    firm: bool

    @property
    def owed(self) -> int:
        return max(0, self.promise - self.held)

    @property
    def beyond(self) -> int:
        return max(0, self.held - self.promise)


class Reservations(Protocol):
    """The sums of one pool. `within` is how many of its pages are free or evictable now."""

    def peak_pages(self, final_tok: int) -> int:
        """The most pages that a request of `final_tok` tokens holds at any time."""
        ...

    def share(self, prefill_tok: int, final_tok: int, held: int, firm: bool) -> Reservation:
        """That of a request which computes `prefill_tok` tokens in chunks; not booked yet."""
        ...

    def room(self, within: int) -> int:
        """Pages that can still be promised."""
        ...

    def admits(self, share: Reservation, within: int) -> bool: ...
    def gives(self, share: Reservation, pages: int, within: int) -> bool: ...
    def book(self, share: Reservation, sign: int = +1) -> None:
        """Adds a request to the sums; with -1 takes it out again, so that it may change."""
        ...

    def check(self, shares: Iterable[Reservation]) -> None:
        """Asserts that the sums are those of `shares`."""
        ...


class FullReservations:
    """Promises of a pool in which a request keeps all of its tokens."""

    def __init__(self, page_tok: int):
        self.page_tok = page_tok
        self.owed = 0

    def peak_pages(self, final_tok: int) -> int:
        return -(-final_tok // self.page_tok)

    def share(self, prefill_tok: int, final_tok: int, held: int, firm: bool) -> Reservation:
        return Reservation(self.peak_pages(final_tok), 0, held, firm)

    def room(self, within: int) -> int:
        return within - self.owed

    def admits(self, share: Reservation, within: int) -> bool:
        return share.owed <= self.room(within)

    def gives(self, share: Reservation, pages: int, within: int) -> bool:
        return pages <= within

    def book(self, share: Reservation, sign: int = +1) -> None:
        self.owed += sign * share.owed

    def check(self, shares: Iterable[Reservation]) -> None:
        assert self.owed == sum(s.owed for s in shares)


class SlidingReservations:
    """Promises of a pool in which a request keeps its window.

    Args:
      total: pages of the pool, without the null page.
      span_tok: the most tokens one step adds to a request.
      step_tok: prompt tokens of all requests in one step.
    """

    def __init__(self, window: int, total: int, *, page_tok: int, span_tok: int, step_tok: int):
        self.window, self.total, self.page_tok, self.span_tok = window, total, page_tok, span_tok
        chunks, rest = divmod(max(span_tok, step_tok), span_tok)
        self.reserve = chunks * self._loan(span_tok) + self._loan(rest)
        self.promised = self.lent = self.loans = 0

    def _most(self, tokens: int, span_tok: int) -> int:
        whole = -(-tokens // self.page_tok)
        return min(whole, max_pages_spanned(self.window - 1 + span_tok, self.page_tok))

    def _loan(self, chunk_tok: int) -> int:
        seen = self.window - 1 + max(1, chunk_tok)
        return max_pages_spanned(seen, self.page_tok) - max_pages_spanned(self.window, self.page_tok)

    def peak_pages(self, final_tok: int) -> int:
        return self._most(final_tok, self.span_tok)

    def share(self, prefill_tok: int, final_tok: int, held: int, firm: bool) -> Reservation:
        promise = self._most(final_tok, 1)
        return Reservation(promise, max(0, self._most(prefill_tok, self.span_tok) - promise), held, firm)

    def room(self, within: int) -> int:
        return self.total - self.promised - max(self.lent, min(self.reserve, self.loans))

    def admits(self, share: Reservation, within: int) -> bool:
        kept = max(self.lent + share.loan, min(self.reserve, self.loans + share.loan))
        return self.promised + share.promise + kept <= self.total

    def gives(self, share: Reservation, pages: int, within: int) -> bool:
        if not share.firm:
            return pages <= within
        more = max(0, share.held + pages - share.promise) - share.beyond
        return more == 0 or self.promised + self.lent + more <= self.total

    def book(self, share: Reservation, sign: int = +1) -> None:
        self.promised += sign * share.promise
        self.loans += sign * share.loan
        self.lent += sign * share.beyond

    def check(self, shares: Iterable[Reservation]) -> None:
        shares = list(shares)
        assert self.promised == sum(s.promise for s in shares)
        assert self.loans == sum(s.loan for s in shares)
        assert self.lent == sum(s.beyond for s in shares)
        kept = self.promised + self.lent <= self.total
        assert kept or not all(s.firm for s in shares), "promised and lent more than there is"


def reservations(group: Group, *, page_tok: int, span_tok: int, step_tok: int) -> Reservations:
    """Those of a group's pool, nobody running yet."""
    if group.window is None:
        return FullReservations(page_tok)
    total = group.num_pages - 1
    return SlidingReservations(group.window, total, page_tok=page_tok, span_tok=span_tok, step_tok=step_tok)
