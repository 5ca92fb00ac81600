"""A radix tree of cached prompts: which KV pages already hold the beginning of a request.

Edges are whole pages of tokens. A node holds, for every page group, the physical pages of its stretch of
tokens. Pages of a *window* group may be missing (the window moved on, or they were evicted): then the
position cannot serve as the end of a hit, because a query there would look back into nothing. A hit of P
tokens is valid iff every full group holds [0, P) and every window group holds [P - W + 1, P).

A request locks the path it reads: the whole path for full groups, and for window groups only the pages
that its current window overlaps. Time is a counter of calls, not a clock, so replays agree.
"""

import heapq
import itertools
from collections.abc import Hashable, Iterator, Sequence

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.match_watch import MatchWatcher
from serving.kvcache.radix_node import PrefixLock, RadixNode, live, upward
from serving.kvcache.tokens import TokenIds, TokenSequence

SLACK = 64  # what is dead may be so many and as many as what lives, before it is cleared away


class RadixTree:
    """The prefix cache of one engine.

    Args:
      page_tok: tokens a page.
      windows: by group, its window in tokens, None for full attention.
    """

    def __init__(self, page_tok: int, windows: Sequence[int | None]):
        self.page_tok = page_tok
        self.windows = tuple(windows)
        self._all_full = all(w is None for w in self.windows)
        self.held = [0] * len(self.windows)  # pages in the tree, by group
        self.evictable = [0] * len(self.windows)  # of those, what no request reads
        self._roots: dict[Hashable, RadixNode] = {}
        self._sweep_at = SLACK
        self._alive = 0  # nodes, the roots not counted
        self._seq = itertools.count()
        self._calls = 0
        self._lru: list[list[tuple[int, int, RadixNode]]] = [[] for _ in self.windows]
        self._watch = MatchWatcher()

    # ---- reading ----

    def match(self, tokens: TokenSequence, cache_salt: Hashable, limit_tok: int) -> int:
        """Length in tokens of the longest valid hit, at most `limit_tok`; changes nothing."""
        root = self._roots.get(cache_salt)
        return 0 if root is None else self._valid_end(list(self._walk(root, tokens)), limit_tok)

    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> list[RadixNode]:
        """Nodes that agree with `tokens` to their end, from the root down; changes nothing."""
        root = self._roots.get(cache_salt)
        return [] if root is None else [n for n, same in self._walk(root, tokens) if same == len(n.key)]

    def watch(self, id: str, tokens: TokenSequence, cache_salt: Hashable, limit_tok: int) -> int:
        """`match`, and from now on `touched` names `id` whenever the answer may have changed."""
        node = root = self._root(cache_salt)
        path = list(self._walk(root, tokens))
        head: Hashable | None = None
        at = 0
        if path:
            node, same = path[-1]
            at = node.start + same
        if at == node.end:
            head = tokens.head(at, self.page_tok) if len(tokens) - at >= self.page_tok else None
        self._watch.put(id, node, head)
        return self._valid_end(path, limit_tok)

    def unwatch(self, id: str) -> None:
        self._watch.drop(id)

    def touched(self) -> list[str] | None:
        """Watched requests whose match may have changed since this was called last; None: any of them."""
        return self._watch.take()

    def acquire(self, tokens: TokenSequence, cache_salt: Hashable, limit_tok: int) -> tuple[PrefixLock, int]:
        """Locks the longest valid hit; returns the lease and the hit's length. Splits a node to end there."""
        self._calls += 1
        root = self._root(cache_salt)
        path = list(self._walk(root, tokens))
        hit = self._valid_end(path, limit_tok)
        end = root
        for node, _ in path:
            if node.start >= hit:
                break
            node.used = self._calls
            end = node if node.end <= hit else self._split(node, hit - node.start)
        return self._lock(end, next_position=hit), hit

    def path_pages(self, lock: PrefixLock) -> list[list[int]]:
        """By group, the physical pages from position 0 to the lease's end (NULL_PAGE where missing)."""
        pages: list[list[int]] = [[] for _ in self.windows]
        for node in reversed(list(upward(lock.end))):
            for mine, theirs in zip(pages, node.pages):
                mine.extend(theirs)
        return pages

    # ---- writing ----

    def insert(
        self, tokens: TokenSequence, cache_salt: Hashable, pages: Sequence[Sequence[int]]
    ) -> tuple[RadixNode, list[list[int]]]:
        """Hands pages over to the tree.

        Args:
          tokens: whole pages of tokens whose KV is computed.
          pages: by group, their pages; NULL_PAGE where the request has none any more.

        Returns:
          The node where `tokens` end, and by group the pages that the tree did not take, because it holds
          the same tokens already; they are the caller's to free or, for those it still holds, to swap.
        """
        self._calls += 1
        node, at = self._root(cache_salt), 0
        spare: list[list[int]] = [[] for _ in self.windows]
        for child, same in list(self._walk(node, tokens)):
            node = child if same == len(child.key) else self._split(child, same)
            node.used = self._calls
            at = node.end
            self._fill(node, pages, spare)
        if at < len(tokens):
            node = self._attach(node, tokens, at, pages)
        return node, spare

    def advance(self, lock: PrefixLock, end: RadixNode, next_position: int) -> PrefixLock:
        """Moves a request's locks to a deeper node; the new ones are taken before the old are let go."""
        new = self._lock(end, next_position)
        self.release(lock)
        return new

    def slide(self, lock: PrefixLock, next_position: int) -> None:
        """Lets go of window pages that a query at `next_position` cannot reach any more."""
        for group, window in enumerate(self.windows):
            if window is not None:
                first = min(self._first_needed(group, next_position), lock.end.end // self.page_tok)
                if first > lock.first[group]:
                    self._count_readers(lock.end, group, lock.first[group], first, -1)
                    lock.first[group] = first

    def release(self, lock: PrefixLock) -> None:
        """Drops all locks of a request; its path becomes evictable where nobody else reads."""
        for group, window in enumerate(self.windows):
            if window is not None:
                last = lock.end.end // self.page_tok
                self._count_readers(lock.end, group, lock.first[group], last, -1)
        for node in upward(lock.end):
            node.ref_count -= 1
            if node.ref_count == 0:
                self._count_evictable(node, +1)
                self._offer(node)

    def evict(self, group: int, wanted: int) -> list[list[int]]:
        """Frees at least `wanted` pages of `group` if that many are evictable, oldest use first.

        Full groups lose whole leaves (with their window pages). Window groups lose a node's window pages;
        the node stays for the full groups, but a leaf without them serves nobody and goes.

        Returns:
          By group, the pages freed.
        """
        freed: list[list[int]] = [[] for _ in self.windows]
        heap = self._lru[group]
        while len(freed[group]) < wanted and heap:
            used, _, node = heapq.heappop(heap)
            node.queued[group] = False
            if not node.alive:
                continue
            if node.used != used:  # touched since it was offered: back in line with its new age
                self._offer(node)
            elif not self._may_evict(node, group):
                continue
            elif self.windows[group] is None or (not node.children and node.ref_count == 0):
                self._remove(node, freed)
            else:
                self._drop_window(node, group, freed)
        return freed

    # ---- inside ----

    def _root(self, cache_salt: Hashable) -> RadixNode:
        root = self._roots.get(cache_salt)
        if root is None:
            self._forget_salts()
            root = self._roots[cache_salt] = self._node(TokenIds(()), 0, None, [[] for _ in self.windows])
        return root

    def _forget_salts(self) -> None:
        """Now and then drops the roots below which nothing is cached and at which nobody waits."""
        if len(self._roots) >= self._sweep_at:
            self._roots = {
                cache_salt: root for cache_salt, root in self._roots.items() if root.children or root.watchers
            }
            self._sweep_at = max(SLACK, 2 * len(self._roots))

    def _node(
        self, key: TokenSequence, start: int, parent: RadixNode | None, pages: list[list[int]]
    ) -> RadixNode:
        node = RadixNode(key, start, parent, pages, next(self._seq), used=self._calls)
        node.readers = [[] if w is None else [0] * len(p) for w, p in zip(self.windows, pages)]
        node.queued = [False] * len(self.windows)
        return node

    def _walk(self, node: RadixNode, tokens: TokenSequence) -> Iterator[tuple[RadixNode, int]]:
        """Nodes along `tokens` with how many tokens of each agree (whole pages)."""
        at = 0
        while len(tokens) - at >= self.page_tok:
            child = node.children.get(tokens.head(at, self.page_tok))
            if child is None:
                return
            same = tokens.common(at, child.key) // self.page_tok * self.page_tok
            yield child, same
            if same < len(child.key):
                return
            node, at = child, at + same

    def _valid_end(self, path: list[tuple[RadixNode, int]], limit_tok: int) -> int:
        """The longest end on `path` at which every window group still has what a query would read."""
        if not path:
            return 0
        page = self.page_tok
        matched = path[-1][0].start + path[-1][1]
        ends = min(matched, limit_tok) // page
        if self._all_full:
            return ends * page
        best, missing = 0, [-1] * len(self.windows)  # missing: by group, the last page without data so far
        have = [[p for node, _ in path for p in node.pages[g]] for g in range(len(self.windows))]
        for end in range(1, ends + 1):
            for group in range(len(self.windows)):
                if have[group][end - 1] == NULL_PAGE:
                    missing[group] = end - 1
            if all(gap < self._first_needed(g, end * page) for g, gap in enumerate(missing)):
                best = end
        return best * page

    def _first_needed(self, group: int, position: int) -> int:
        """The first page a query at `position` reads: what lies before may be missing."""
        window = self.windows[group]
        return 0 if window is None else max(0, position - window + 1) // self.page_tok

    def _split(self, node: RadixNode, at: int) -> RadixNode:
        """Cuts `node` after `at` tokens; the new upper half is returned, the lower keeps its identity."""
        cut = at // self.page_tok
        parent = node.parent
        assert parent is not None
        assert 0 < at < len(node.key)
        upper = self._node(node.key.cut(0, at), node.start, parent, [p[:cut] for p in node.pages])
        self._watch.wake(node, None)
        upper.ref_count, upper.used = node.ref_count, node.used
        upper.readers = [r[:cut] for r in node.readers]
        parent.children[node.key.head(0, self.page_tok)] = upper
        upper.children[node.key.head(at, self.page_tok)] = node
        node.key, node.start, node.parent = node.key.cut(at, len(node.key)), node.start + at, upper
        node.pages = [p[cut:] for p in node.pages]
        node.readers = [r[cut:] for r in node.readers]
        self._alive += 1
        self._offer(upper)
        return upper

    def _attach(
        self, parent: RadixNode, tokens: TokenSequence, at: int, pages: Sequence[Sequence[int]]
    ) -> RadixNode:
        first = at // self.page_tok
        node = self._node(tokens.cut(at, len(tokens)), at, parent, [list(p[first:]) for p in pages])
        head = node.key.head(0, self.page_tok)
        parent.children[head] = node
        self._alive += 1
        self._watch.wake(parent, head)
        for group in range(len(self.windows)):
            count = live(node.pages[group])
            self.held[group] += count
            self.evictable[group] += count
        self._offer(node)
        return node

    def _fill(self, node: RadixNode, pages: Sequence[Sequence[int]], spare: list[list[int]]) -> None:
        """Takes what this node lacks from `pages`; the rest of its stretch goes to `spare`."""
        first = node.start // self.page_tok
        for group, mine in enumerate(node.pages):
            for i, page in enumerate(pages[group][first : first + len(mine)]):
                if page == NULL_PAGE or page == mine[i]:
                    continue
                if mine[i] != NULL_PAGE:
                    spare[group].append(page)
                    continue
                mine[i] = page
                self._watch.everybody()
                self.held[group] += 1
                self.evictable[group] += self._is_evictable(node, group, i)
        self._offer(node)

    def _lock(self, end: RadixNode, next_position: int) -> PrefixLock:
        lock = PrefixLock(end, [0] * len(self.windows))
        for node in upward(end):
            if node.ref_count == 0:
                self._count_evictable(node, -1)
            node.ref_count += 1
        last = end.end // self.page_tok
        for group, window in enumerate(self.windows):
            if window is not None:
                lock.first[group] = min(self._first_needed(group, next_position), last)
                self._count_readers(end, group, lock.first[group], last, +1)
        return lock

    def _count_readers(self, end: RadixNode, group: int, first: int, last: int, by: int) -> None:
        """Adds `by` to the readers of pages `first..last-1` on the path to `end`."""
        for node in upward(end):
            offset = node.start // self.page_tok
            pages, readers = node.pages[group], node.readers[group]
            for i in range(max(0, first - offset), min(len(pages), last - offset)):
                readers[i] += by
                if pages[i] != NULL_PAGE and readers[i] == max(0, by):  # 0 -> 1 or 1 -> 0
                    self.evictable[group] -= by
            if by < 0:
                self._offer(node)
            if offset <= first:
                return

    def _loose(self, node: RadixNode, group: int) -> list[int]:
        """Places of a node's window pages that no request reads."""
        pages, readers = node.pages[group], node.readers[group]
        return [i for i, page in enumerate(pages) if page != NULL_PAGE and not readers[i]]

    def _is_evictable(self, node: RadixNode, group: int, i: int) -> bool:
        return node.ref_count == 0 if self.windows[group] is None else node.readers[group][i] == 0

    def _may_evict(self, node: RadixNode, group: int) -> bool:
        if self.windows[group] is None:
            return node.ref_count == 0 and not node.children and node.parent is not None
        return bool(self._loose(node, group))

    def _count_evictable(self, node: RadixNode, sign: int) -> None:
        for group, window in enumerate(self.windows):
            if window is None:
                self.evictable[group] += sign * len(node.pages[group])

    def _offer(self, node: RadixNode) -> None:
        """Puts a node in line for eviction wherever it qualifies."""
        for group in range(len(self.windows)):
            if not node.queued[group] and self._may_evict(node, group):
                node.queued[group] = True
                heapq.heappush(self._lru[group], (node.used, node.seq, node))
                self._clear_line(group)

    def _clear_line(self, group: int) -> None:
        """Takes the dead out of a line that is mostly dead; one that is never served would keep them."""
        line = self._lru[group]
        if len(line) > 2 * self._alive + SLACK:
            line[:] = [place for place in line if place[2].alive]
            heapq.heapify(line)

    def _drop_window(self, node: RadixNode, group: int, freed: list[list[int]]) -> None:
        """Frees the window pages of a node that nobody reads."""
        self._watch.everybody()  # which hits below end without a window now would be a search
        gone = self._loose(node, group)
        freed[group].extend(node.pages[group][i] for i in gone)
        self.held[group] -= len(gone)
        self.evictable[group] -= len(gone)
        for i in gone:
            node.pages[group][i] = NULL_PAGE

    def _remove(self, node: RadixNode, freed: list[list[int]]) -> None:
        parent = node.parent
        assert parent is not None
        assert not node.children
        assert node.ref_count == 0
        for group, window in enumerate(self.windows):
            if window is not None:
                self._drop_window(node, group, freed)
            else:
                freed[group].extend(node.pages[group])
                self.held[group] -= len(node.pages[group])
                self.evictable[group] -= len(node.pages[group])
        node.alive = False
        self._alive -= 1
        for head in list(node.watchers):
            self._watch.wake(node, head)
        del parent.children[node.key.head(0, self.page_tok)]
        self._offer(parent)

    def nodes(self) -> Iterator[RadixNode]:
        """Every node but the roots, for checks."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent is not None:
                yield node
