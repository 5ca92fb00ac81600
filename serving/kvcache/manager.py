"""What each request holds: pages by group, locks in the prefix tree, and the page tables the device reads.

A request's first pages, up to its lease's end, belong to the prefix tree; the ones behind are its own.
Everything it computes is handed to the tree in whole pages, so the next request with the same beginning
finds it. Pages that a sliding window has left are let go after every committed step.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.kvcache.allocator import NULL_PAGE, Group, PageAllocator
from serving.kvcache.radix_node import PrefixLock
from serving.kvcache.radix_tree import RadixTree
from serving.kvcache.reservation import Reservation, reservations
from serving.kvcache.tokens import TokenSequence

ALONE = None  # the salt of requests that neither find anything cached nor leave anything


@dataclass(eq=False, slots=True)
class SequencePages:
    """Pages of one running request.

    Attributes:
      pages: by group, logical page -> physical page; NULL_PAGE where the window has passed.
      lock: locks in the tree; pages before its end are the tree's.
      slot: row of the page tables.
      first: by group, the first logical page it still needs; all before are NULL_PAGE, none from it on is.
      shares: by group, how many pages it holds, and may.
      prefill_tok: tokens it computes in chunks.
      next_release_tok: up to which position no window leaves a page, so that there is nothing to let go.
    """

    slot: int
    lock: PrefixLock
    prefill_tok: int
    cache_salt: Hashable
    pages: list[list[int]]
    first: list[int]
    shares: list[Reservation] = field(default_factory=list)
    next_release_tok: float = 0


class KVCacheManager:
    """Pools, prefix tree and page tables of one engine.

    Args:
      groups: the model's page groups.
      page_tok: tokens a page.
      max_slots: requests that can run at once.
      max_tok: the longest request, prompt and outputs together.
      span_tok: the most tokens one step may add to a request (prefill chunk or decode steps).
      step_tok: prompt tokens of all requests in one step; one request's `span_tok` if not given.
      reuse: keep finished prompts for later requests.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        page_tok: int,
        max_slots: int,
        max_tok: int,
        span_tok: int,
        step_tok: int = 0,
        reuse: bool = True,
    ):
        self.groups = tuple(groups)
        self.page_tok, self.max_tok, self.span_tok, self.reuse = page_tok, max_tok, span_tok, reuse
        self.pools = [PageAllocator(g.num_pages) for g in self.groups]
        self.tree = RadixTree(page_tok, [g.window for g in self.groups])
        width = -(-max_tok // page_tok)
        self.tables = [np.zeros((max_slots, width), np.int32) for _ in self.groups]
        self._free_slots = list(range(max_slots - 1, -1, -1))
        self.promises = [
            reservations(g, page_tok=page_tok, span_tok=span_tok, step_tok=step_tok) for g in self.groups
        ]
        self._sequences: dict[int, SequencePages] = {}

    # ---- what could be held ----

    def never_fits(self, final_tok: int) -> str | None:
        """Why a request of `final_tok` tokens cannot run even alone, or None."""
        if final_tok > self.max_tok:
            return f"needs {final_tok} tokens, the engine serves at most {self.max_tok} a request"
        for group, promise in zip(self.groups, self.promises):
            if (need := promise.peak_pages(final_tok)) > group.num_pages - 1:
                return (
                    f"needs {need} pages with window {group.window}, of which there are {group.num_pages - 1}"
                )
        return None

    def room(self, group: int) -> int:
        """Pages that can still be promised.

        A page of a full group that two requests share is counted once: neither lets go of it while it runs.
        Sliding requests do let go, each in its own time, so each is promised its pages whatever it shares.
        """
        return self.promises[group].room(self._within(group))

    @property
    def slots_free(self) -> int:
        return len(self._free_slots)

    # ---- a request's life ----

    def match(self, tokens: TokenSequence, cache_salt: Hashable) -> int:
        """Tokens a new request would find cached; at least one token is always left to compute."""
        return self.tree.match(tokens, cache_salt, self._limit(tokens, cache_salt))

    def watch(self, id: str, tokens: TokenSequence, cache_salt: Hashable) -> int:
        """`match`, and `touched` names `id` whenever the answer may have changed, until `unwatch`."""
        return self.tree.watch(id, tokens, cache_salt, self._limit(tokens, cache_salt)) if self.reuse else 0

    def unwatch(self, id: str) -> None:
        self.tree.unwatch(id)

    def touched(self) -> list[str] | None:
        return self.tree.touched()

    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> Sequence[Hashable]:
        """Nodes of the prefix tree along `tokens`, from the root down."""
        return self.tree.path(tokens, cache_salt)

    def admit(
        self, tokens: TokenSequence, cache_salt: Hashable, final_tok: int, *, reserve: bool
    ) -> tuple[SequencePages, int] | None:
        """Takes a slot and locks the cached prefix, if the request fits.

        Args:
          reserve: promise it every page it may ever need; otherwise only those of its prompt.

        Returns:
          What it holds and the hit in tokens, or None with nothing changed.
        """
        if not self._free_slots:
            return None
        lock, hit = self.tree.acquire(tokens, cache_salt, self._limit(tokens, cache_salt))
        kv = SequencePages(
            -1, lock, len(tokens), cache_salt, self.tree.path_pages(lock), [0] * len(self.groups)
        )
        self._forget_before(kv, hit)
        final_tok = final_tok if reserve else len(tokens)
        shares = [
            promise.share(len(tokens), final_tok, len(pages) - first, firm=reserve)
            for promise, pages, first in zip(self.promises, kv.pages, kv.first)
        ]
        # The lock itself made pages unevictable, so room is asked for after it.
        if not all(self.promises[g].admits(share, self._within(g)) for g, share in enumerate(shares)):
            self.tree.release(lock)
            return None
        kv.slot, kv.shares = self._free_slots.pop(), shares
        self._sequences[kv.slot] = kv
        for g, share in enumerate(shares):
            self.promises[g].book(share)
            self._write_row(kv, g)
        return kv, hit

    def grow(self, kv: SequencePages, computed_tok: int, upto_tok: int) -> bool:
        """Makes sure pages exist for positions `computed_tok..upto_tok-1`, evicting if need be.

        A request admitted with `reserve` can always take one more token (`serving.kvcache.reservation`).

        Returns:
          False with nothing changed if some group has too few pages.
        """
        need = -(-upto_tok // self.page_tok)
        if need <= len(kv.pages[0]):  # every group has as many logical pages
            return True
        wants = [max(0, -(-upto_tok // self.page_tok) - len(pages)) for pages in kv.pages]
        for g, want in enumerate(wants):
            if want and not self.promises[g].gives(kv.shares[g], want, self._within(g)):
                return False
        for g, want in enumerate(wants):
            if want:
                self._ensure_free(g, want)
                self._held(kv, g, +want)
                kv.pages[g].extend(self.pools[g].take(want))
                self._write_row(kv, g)
        return True

    def no_growth_until_tok(self, kv: SequencePages) -> float:
        """While it has computed no more tokens than this, `grow` and `computed` have nothing to do for it."""
        return min(len(kv.pages[0]) * self.page_tok, kv.next_release_tok - 1)

    def computed(self, kv: SequencePages, tokens: TokenSequence, computed_tok: int, *, share: bool) -> None:
        """Tells that KV of the first `computed_tok` tokens is there; lets go of what windows have passed.

        Args:
          tokens: the request's tokens; in a simulation possibly without outputs, which are then not shared.
          share: hand whole pages to the prefix tree now.
        """
        if not share and computed_tok < kv.next_release_tok:
            return
        whole = min(computed_tok, len(tokens)) // self.page_tok * self.page_tok
        if share and self.reuse and kv.cache_salt is not ALONE and whole > kv.lock.end.end:
            self._share(kv, tokens.cut(0, whole), computed_tok)
        self.tree.slide(kv.lock, computed_tok)
        self._forget_before(kv, computed_tok)
        if computed_tok >= kv.prefill_tok:
            self._repay(kv)
        kv.next_release_tok = min(
            (
                (first + 1) * self.page_tok + g.window - 1
                for g, first in zip(self.groups, kv.first)
                if g.window
            ),
            default=math.inf,
        )

    def release(self, kv: SequencePages) -> None:
        """Gives back everything a request holds; what it shared stays in the tree."""
        own = kv.lock.end.end // self.page_tok
        for g, pages in enumerate(kv.pages):
            self.promises[g].book(kv.shares[g], -1)
            self.pools[g].give(pages[own:])
            self.tables[g][kv.slot] = NULL_PAGE
        self.tree.release(kv.lock)
        del self._sequences[kv.slot]
        self._free_slots.append(kv.slot)

    def clear_cache(self) -> None:
        """Drops every cached page that no running request reads."""
        for g in range(len(self.groups)):
            self._evict(g, self.tree.held[g])

    # ---- inside ----

    def _limit(self, tokens: TokenSequence, cache_salt: Hashable) -> int:
        return len(tokens) - 1 if self.reuse and cache_salt is not ALONE else 0

    def _within(self, group: int) -> int:
        """Pages that are free, or would be if nothing were cached."""
        return len(self.pools[group]) + self.tree.evictable[group]

    def _held(self, kv: SequencePages, group: int, by: int) -> None:
        promise, share = self.promises[group], kv.shares[group]
        promise.book(share, -1)
        share.held += by
        promise.book(share)

    def _repay(self, kv: SequencePages) -> None:
        """Its prompt is computed: no chunk will have to be lent any more."""
        for promise, share in zip(self.promises, kv.shares):
            if share.loan:
                promise.book(share, -1)
                share.loan = 0
                promise.book(share)

    def _share(self, kv: SequencePages, tokens: TokenSequence, computed_tok: int) -> None:
        own = kv.lock.end.end // self.page_tok
        whole = len(tokens) // self.page_tok
        # Pages that were the tree's already go in as missing: only the request's own can be handed over.
        offer = [[NULL_PAGE] * own + pages[own:whole] for pages in kv.pages]
        end, spare = self.tree.insert(tokens, kv.cache_salt, offer)
        kv.lock = self.tree.advance(kv.lock, end, computed_tok)
        for g, path in enumerate(self.tree.path_pages(kv.lock)):
            first = kv.first[g]
            kv.pages[g][first:whole] = path[first:]
            self.pools[g].give(spare[g])
            self._write_row(kv, g)

    def _forget_before(self, kv: SequencePages, position: int) -> None:
        """Drops pages no query from `position` on can read; own ones are freed, the tree keeps its own."""
        own = kv.lock.end.end // self.page_tok
        for g, group in enumerate(self.groups):
            pages, old = kv.pages[g], kv.first[g]
            new = min(group.first_needed(position, self.page_tok), len(pages))
            if new <= old:
                continue
            self.pools[g].give(pages[max(old, own) : new])
            pages[old:new] = [NULL_PAGE] * (new - old)
            kv.first[g] = new
            if kv.slot >= 0:
                self._held(kv, g, old - new)
                self.tables[g][kv.slot, old:new] = NULL_PAGE

    def _write_row(self, kv: SequencePages, group: int) -> None:
        pages = kv.pages[group]
        self.tables[group][kv.slot, : len(pages)] = pages

    def _ensure_free(self, group: int, n: int) -> None:
        if (short := n - len(self.pools[group])) > 0:
            self._evict(group, short)

    def _evict(self, group: int, n: int) -> None:
        for pool, pages in zip(self.pools, self.tree.evict(group, n)):
            pool.give(pages)

    def check(self) -> None:
        """Asserts that every page has exactly one holder and every count agrees; for tests and debugging."""
        for g, pool in enumerate(self.pools):
            holders: dict[int, str] = dict.fromkeys(pool.free_pages(), "free")
            assert len(holders) == len(pool)
            for node in self.tree.nodes():
                self._hold(holders, node.pages[g], "tree")
            for h in self._sequences.values():
                own = h.lock.end.end // self.page_tok
                self._hold(holders, h.pages[g][own:], f"slot {h.slot}")
                row = self.tables[g][h.slot]
                assert row[: len(h.pages[g])].tolist() == h.pages[g]
                assert [p == NULL_PAGE for p in h.pages[g]] == [
                    i < h.first[g] for i in range(len(h.pages[g]))
                ]
                assert not row[len(h.pages[g]) :].any()
                assert all(holders[p] == "tree" for p in h.pages[g][:own] if p != NULL_PAGE)
            assert set(holders) == set(range(1, pool.num_pages)), "a page is lost"
            assert all(h.shares[g].held == len(h.pages[g]) - h.first[g] for h in self._sequences.values())
            self.promises[g].check(h.shares[g] for h in self._sequences.values())
            self._check_tree(g)

    def _hold(self, holders: dict[int, str], pages: Sequence[int], who: str) -> None:
        for page in pages:
            if page != NULL_PAGE:
                assert page not in holders, f"page {page} is held by {holders[page]} and by {who}"
                holders[page] = who

    def _check_tree(self, group: int) -> None:
        live = [(n, sum(p != NULL_PAGE for p in n.pages[group])) for n in self.tree.nodes()]
        window = self.groups[group].window
        assert self.tree.held[group] == sum(k for _, k in live)
        if window is None:
            loose = sum(k for n, k in live if n.ref_count == 0)
        else:
            loose = sum(
                p != NULL_PAGE and not r for n, _ in live for p, r in zip(n.pages[group], n.readers[group])
            )
        assert self.tree.evictable[group] == loose
        for node in self.tree.nodes():
            readers = sum(_on_path(node, h.lock.end) for h in self._sequences.values())
            assert node.ref_count == readers
            assert all(r <= node.ref_count for r in node.readers[group])


def _on_path(node, end) -> bool:
    while end is not None:
        if end is node:
            return True
        end = end.parent
    return False
