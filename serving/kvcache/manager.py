"""What each request holds: pages by group, a lock in the prefix tree, and the page tables the device reads.

A request's first pages, up to its lock's end, belong to the prefix tree; the ones behind are its own.
Everything it computes is handed to the tree in whole pages, so the next request with the same beginning
finds it. Pages that no later query needs are released after every committed step.

A request with a `SlabPlan` holds full pages for its prompt only. `settle` lets go of them and of the tree,
once a program has moved what survives to the slab of its slot; nothing of it enters the tree afterwards.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

from serving.kvcache.allocator import NULL_PAGE, PageAllocator
from serving.kvcache.groups import FullGroup, KVGroup
from serving.kvcache.radix_node import RadixNode, upward
from serving.kvcache.radix_tree import RadixTree
from serving.kvcache.reservation import Reservation
from serving.kvcache.sequence import SequencePages, Settlement
from serving.kvcache.slab_plan import SlabPlan
from serving.kvcache.tokens import TokenSequence
from serving.kvcache.vote_rows import NO_VOTES, VoteRows

UNSHARED = None  # the cache salt of requests that neither find anything cached nor leave anything


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
      working_votes: prompts whose queries vote that are computed at once. snapshots: see `VoteRows`.

    Attributes:
      hits_lost: requests that found less than is cached because no snapshot ends there.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        *,
        page_tok: int,
        max_slots: int,
        max_tok: int,
        span_tok: int,
        step_tok: int = 0,
        reuse: bool = True,
        working_votes: int = 0,
        snapshots: int = 0,
    ):
        self.groups = tuple(groups)
        self.page_tok, self.max_tok, self.span_tok = page_tok, max_tok, span_tok
        self.reuse = reuse and all(g.shareable for g in self.groups)
        self.pools = [PageAllocator(g.num_pages) for g in self.groups]
        self.tree = RadixTree(page_tok, self.groups)
        self.votes = VoteRows(working_votes, snapshots, self.tree.watcher.touch_all)
        self.tree.on_remove = self.votes.drop
        self.hits_lost = 0
        self._full = [isinstance(g, FullGroup) for g in self.groups]
        widths = [g.table_pages(max_tok, page_tok) for g in self.groups]
        self.tables = [np.zeros((max_slots, width), np.int32) for width in widths]
        self._free_slots = list(range(max_slots - 1, -1, -1))
        self.reservations = [
            g.reservations(page_tok=page_tok, span_tok=span_tok, step_tok=step_tok) for g in self.groups
        ]
        self._sequences: dict[int, SequencePages] = {}

    # ---- what could be held ----

    def never_fits(self, final_tok: int, settles_tok: int | None = None) -> str | None:
        """Why a request of `final_tok` tokens cannot run even alone, or None.

        Args:
          settles_tok: its prompt, if it holds full pages for no more than that.
        """
        if final_tok > self.max_tok:
            return f"needs {final_tok} tokens, the engine serves at most {self.max_tok} a request"
        for group, pool, full in zip(self.groups, self.reservations, self._full):
            most_tok = final_tok if settles_tok is None or not full else settles_tok
            if (need := pool.peak_pages(most_tok)) > group.num_pages - 1:
                return (
                    f"needs {need} pages of the {group.name} pool, of which there are {group.num_pages - 1}"
                )
        return None

    def room(self, group: int) -> int:
        """Pages of a group that can still be reserved.

        A full page that two requests share is counted once, since neither releases it while it runs. Sliding
        requests release pages at different times, so each reserves its pages whatever it shares.
        """
        return self.reservations[group].room(self._available(group))

    @property
    def slots_free(self) -> int:
        return len(self._free_slots)

    # ---- a request's life ----

    def match(self, tokens: TokenSequence, cache_salt: Hashable, plan: SlabPlan | None = None) -> int:
        """Tokens a new request would find cached; at least one token is always left to compute."""
        return self.tree.match(tokens, cache_salt, self._limit(tokens, cache_salt, plan), _scored(plan))

    def watch(
        self, id: str, tokens: TokenSequence, cache_salt: Hashable, plan: SlabPlan | None = None
    ) -> int:
        """`match`, and `touched` names `id` whenever the answer may have changed, until `unwatch`."""
        limit_tok = self._limit(tokens, cache_salt, plan)
        return self.tree.watch(id, tokens, cache_salt, limit_tok, _scored(plan)) if self.reuse else 0

    def unwatch(self, id: str) -> None:
        self.tree.watcher.drop(id)

    def touched(self) -> list[str] | None:
        """Watched requests whose match may have changed since the last call; None: any of them."""
        return self.tree.watcher.take()

    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> Sequence[Hashable]:
        """Nodes of the prefix tree along `tokens`, from the root down."""
        return self.tree.path(tokens, cache_salt)

    def admit(
        self,
        tokens: TokenSequence,
        cache_salt: Hashable,
        final_tok: int,
        *,
        reserve: bool,
        plan: SlabPlan | None = None,
    ) -> tuple[SequencePages, int] | None:
        """Takes a slot and locks the cached prefix, if the request fits.

        Args:
          reserve: reserve every page it may ever need; otherwise only those of its prompt.
          plan: it goes on in a slab after its prompt.

        Returns:
          What it holds and the hit in tokens, or None with nothing changed.
        """
        if not self._free_slots or (plan is not None and not self.may_start(plan)):
            return None
        limit_tok = self._limit(tokens, cache_salt, plan)
        lock, hit = self.tree.acquire(tokens, cache_salt, limit_tok, _scored(plan))
        pages = self.tree.path_pages(lock)
        kv = SequencePages(-1, lock, len(tokens), cache_salt, pages, [0] * len(self.groups))
        self._release_before(kv, hit)
        final_tok = final_tok if reserve else len(tokens)
        kv.reservations = [
            pool.reserve(
                len(tokens),
                len(tokens) if plan is not None and full else final_tok,
                len(pages) - first,
                guaranteed=reserve,
            )
            for pool, pages, first, full in zip(self.reservations, kv.pages, kv.first, self._full)
        ]
        # The lock itself made pages unevictable, so room is asked for after it.
        if not all(
            self.reservations[g].can_admit(reservation, self._available(g))
            for g, reservation in enumerate(kv.reservations)
        ):
            self.tree.release(lock)
            return None
        kv.slot, kv.capacity_tok = self._free_slots.pop(), self._capacity_tok(kv)
        self._sequences[kv.slot] = kv
        for g, reservation in enumerate(kv.reservations):
            self.reservations[g].add(reservation)
            self._write_row(kv, g)
        if plan is not None and plan.votes:
            cached = self.tree.match(tokens, cache_salt, limit_tok) if _scored(plan) else None
            self._start_votes(kv, tokens, hit, cached)
        return kv, hit

    def grow(self, kv: SequencePages, computed_tok: int, upto_tok: int) -> bool:
        """Makes sure pages exist for positions `computed_tok..upto_tok-1`, evicting if need be.

        A request admitted with `reserve` can always take one more token (`serving.kvcache.reservation`).

        Returns:
          False with nothing changed if some group has too few pages.
        """
        if upto_tok <= kv.capacity_tok:
            return True
        wants = [
            0 if full and kv.settled else group.table_pages(upto_tok, self.page_tok) - len(pages)
            for group, pages, full in zip(self.groups, kv.pages, self._full)
        ]
        for g, want in enumerate(wants):
            if want > 0 and not self.reservations[g].can_grow(kv.reservations[g], want, self._available(g)):
                return False
        for g, want in enumerate(wants):
            if want > 0:
                self._ensure_free(g, want)
                self._change_held(kv, g, +want)
                kv.pages[g].extend(self.pools[g].allocate(want))
                self._write_row(kv, g)
        kv.capacity_tok = self._capacity_tok(kv)
        return True

    def no_growth_until_tok(self, kv: SequencePages) -> float:
        """While it has computed no more tokens than this, `grow` and `computed` have nothing to do for it."""
        return min(kv.capacity_tok, kv.next_release_tok - 1)

    def computed(self, kv: SequencePages, tokens: TokenSequence, computed_tok: int, *, share: bool) -> None:
        """Records that KV of the first `computed_tok` tokens exists; releases what is no longer needed.

        Args:
          tokens: the request's tokens; in a simulation possibly without outputs, which are then not shared.
          share: hand whole pages to the prefix tree now.
        """
        if not share and computed_tok < kv.next_release_tok:
            return
        whole = min(computed_tok, len(tokens)) // self.page_tok * self.page_tok
        shares = share and self.reuse and kv.cache_salt is not UNSHARED and not kv.settled
        if shares and whole > kv.lock.end.end:
            self._share(kv, tokens.cut(0, whole), computed_tok)
        if kv.votes is not None:
            found = shares and kv.lock.end.end == computed_tok
            self.votes.note(kv.votes, computed_tok, kv.lock.end if found else None)
        self.tree.slide(kv.lock, computed_tok)
        self._release_before(kv, computed_tok)
        if computed_tok >= kv.prefill_tok:
            self._end_borrowing(kv)
        kv.next_release_tok = min(
            g.next_release_tok(first, self.page_tok) for g, first in zip(self.groups, kv.first)
        )

    def may_start(self, plan: SlabPlan) -> bool:
        """Whether there is a row for the votes of one more prompt."""
        return not plan.votes or self.votes.free > 0

    def chunk_end(self, kv: SequencePages, computed_tok: int, upto_tok: int) -> int:
        """Where a chunk from `computed_tok` has to end: at `upto_tok`, or before it to leave a snapshot."""
        return upto_tok if kv.votes is None else self.votes.chunk_end(kv.votes, computed_tok, upto_tok)

    def settle(self, kv: SequencePages) -> Settlement | None:
        """Lets go of the tree and of every full page; the caller moves what survives before all else it runs.

        Window pages that were the tree's are copied to pages of the request's own, taken within what it
        holds already: after the lock is gone, at least as many are free or evictable.

        Returns:
          None with nothing changed if pages are not reserved and too few are there.
        """
        own, first = kv.lock.end.end // self.page_tok, kv.first
        shared = [
            [] if full else kv.pages[g][first[g] : max(first[g], own)] for g, full in enumerate(self._full)
        ]
        for g, reservation in enumerate(kv.reservations):
            if not reservation.guaranteed and len(shared[g]) > self._available(g):
                return None
        table = self.tables[self._full.index(True)][kv.slot].copy()
        for g, full in enumerate(self._full):
            if full:
                self._let_go(kv, g, own)
        self.tree.release(kv.lock)
        kv.lock = self.tree.lock_nothing(kv.cache_salt)
        moves: list[list[tuple[int, int]]] = [[] for _ in self.groups]
        for g, pages in enumerate(shared):
            if pages:
                self._ensure_free(g, len(pages))
                mine = self.pools[g].allocate(len(pages))
                moves[g] = list(zip(pages, mine))
                kv.pages[g][first[g] : first[g] + len(mine)] = mine
                self._write_row(kv, g)
        votes_row = kv.votes.row if kv.votes is not None else NO_VOTES
        self._end_votes(kv)
        kv.settled, kv.capacity_tok = True, self._capacity_tok(kv)
        return Settlement(kv.slot, table, votes_row, moves)

    def release(self, kv: SequencePages) -> None:
        """Frees everything a request holds; what it shared stays in the tree."""
        own = kv.lock.end.end // self.page_tok
        for g, pages in enumerate(kv.pages):
            self.reservations[g].add(kv.reservations[g], -1)
            self.pools[g].free(pages[own:])
            self.tables[g][kv.slot] = NULL_PAGE
        self._end_votes(kv)
        self.tree.release(kv.lock)
        del self._sequences[kv.slot]
        self._free_slots.append(kv.slot)

    def clear_cache(self) -> None:
        """Drops every cached page that no running request reads."""
        for g, pages in enumerate(self.tree.pages):
            self._evict(g, pages.held)

    # ---- inside ----

    def _limit(self, tokens: TokenSequence, cache_salt: Hashable, plan: SlabPlan | None = None) -> int:
        left = max(1, plan.last_queries) if plan is not None else 1
        return max(0, len(tokens) - left) if self.reuse and cache_salt is not UNSHARED else 0

    def _capacity_tok(self, kv: SequencePages) -> float:
        return min(
            (
                group.capacity_tok(len(pages), self.page_tok)
                for group, pages, full in zip(self.groups, kv.pages, self._full)
                if not (full and kv.settled)
            ),
            default=math.inf,
        )

    def _let_go(self, kv: SequencePages, group: int, own: int) -> None:
        """Frees the request's own pages of a full group, and its reservation."""
        self.pools[group].free(kv.pages[group][own:])
        self.reservations[group].add(kv.reservations[group], -1)
        kv.reservations[group] = Reservation(0, 0, 0, kv.reservations[group].guaranteed)
        self.reservations[group].add(kv.reservations[group])
        kv.pages[group], kv.first[group] = [], 0
        self.tables[group][kv.slot] = NULL_PAGE

    def _start_votes(self, kv: SequencePages, tokens: TokenSequence, hit: int, cached: int | None) -> None:
        """Takes a row for the prompt's votes.

        Args:
          cached: the hit without the need for scores; None: the scorer needs no history.
        """
        marks: list[int] = []
        if cached is not None and self.reuse and kv.cache_salt is not UNSHARED and self.votes.snapshots:
            last = (len(tokens) - 1) // self.page_tok * self.page_tok
            marks = sorted(end for end in {cached, last} if end > hit)
            self.hits_lost += cached > hit
        base = kv.lock.end.snapshot if hit and cached is not None else NO_VOTES
        kv.votes = self.votes.begin(base, hit, marks)

    def _end_votes(self, kv: SequencePages) -> None:
        if kv.votes is not None:
            self.votes.finish(kv.votes)
        kv.votes = None

    def _available(self, group: int) -> int:
        """Pages that are free, or would be if nothing were cached."""
        return len(self.pools[group]) + self.tree.pages[group].evictable

    def _change_held(self, kv: SequencePages, group: int, by: int) -> None:
        pool, reservation = self.reservations[group], kv.reservations[group]
        pool.add(reservation, -1)
        reservation.held += by
        pool.add(reservation)

    def _end_borrowing(self, kv: SequencePages) -> None:
        """Its prompt is computed: no chunk will borrow any more."""
        for pool, reservation in zip(self.reservations, kv.reservations):
            if reservation.borrowable:
                pool.add(reservation, -1)
                reservation.borrowable = 0
                pool.add(reservation)

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
            self.pools[g].free(spare[g])
            self._write_row(kv, g)

    def _release_before(self, kv: SequencePages, position: int) -> None:
        """Drops pages no query from `position` on can read; own ones are freed, the tree keeps its own."""
        own = kv.lock.end.end // self.page_tok
        for g, group in enumerate(self.groups):
            pages, old = kv.pages[g], kv.first[g]
            new = min(group.first_needed_tok(position) // self.page_tok, len(pages))
            if new <= old:
                continue
            self.pools[g].free(pages[max(old, own) : new])
            pages[old:new] = [NULL_PAGE] * (new - old)
            kv.first[g] = new
            if kv.slot >= 0:
                self._change_held(kv, g, old - new)
                self.tables[g][kv.slot, old:new] = NULL_PAGE

    def _write_row(self, kv: SequencePages, group: int) -> None:
        pages = kv.pages[group]
        self.tables[group][kv.slot, : len(pages)] = pages

    def _ensure_free(self, group: int, n: int) -> None:
        if (short := n - len(self.pools[group])) > 0:
            self._evict(group, short)

    def _evict(self, group: int, n: int) -> None:
        for pool, pages in zip(self.pools, self.tree.evict(group, n)):
            pool.free(pages)

    def check(self) -> None:
        """Asserts that every page has exactly one holder and every count agrees; for tests and debugging."""
        nodes, sequences = list(self.tree.nodes()), list(self._sequences.values())
        for g, pool in enumerate(self.pools):
            holders: dict[int, str] = dict.fromkeys(pool.free_pages(), "free")
            assert len(holders) == len(pool)
            for node in nodes:
                _hold(holders, node.pages[g], "tree")
            for kv in sequences:
                self._check_sequence(kv, g, holders)
            assert set(holders) == set(range(1, pool.num_pages)), "a page is lost"
            assert all(kv.reservations[g].held == len(kv.pages[g]) - kv.first[g] for kv in sequences)
            self.reservations[g].check(kv.reservations[g] for kv in sequences)
            self.tree.pages[g].check(nodes)
        for node in nodes:
            assert node.ref_count == sum(_is_on_path(node, kv.lock.end) for kv in sequences)
        votes = [kv.votes for kv in sequences if kv.votes is not None]
        reserved = [v.mark_row for v in votes if v.mark_row]
        self.votes.check([v.row for v in votes], reserved, nodes)
        settled = [kv for kv in sequences if kv.settled]
        assert not any(kv.lock.end.end for kv in settled), "a settled request locks a prefix"
        assert not any(kv.pages[g] for kv in settled for g, full in enumerate(self._full) if full)

    def _check_sequence(self, kv: SequencePages, group: int, holders: dict[int, str]) -> None:
        own, pages = kv.lock.end.end // self.page_tok, kv.pages[group]
        _hold(holders, pages[own:], f"slot {kv.slot}")
        row = self.tables[group][kv.slot]
        assert row[: len(pages)].tolist() == pages
        assert [p == NULL_PAGE for p in pages] == [i < kv.first[group] for i in range(len(pages))]
        assert not row[len(pages) :].any()
        assert all(holders[p] == "tree" for p in pages[:own] if p != NULL_PAGE)


def _scored(plan: SlabPlan | None) -> bool:
    """Whether a hit needs the scores of its prefix."""
    return plan is not None and plan.history


def _hold(holders: dict[int, str], pages: Sequence[int], who: str) -> None:
    for page in pages:
        if page != NULL_PAGE:
            assert page not in holders, f"page {page} is held by {holders[page]} and by {who}"
            holders[page] = who


def _is_on_path(node: RadixNode, end: RadixNode) -> bool:
    return any(above is node for above in upward(end))
