"""A radix tree of cached prompts: which KV pages already hold the beginning of a request.

Edges are whole pages of tokens. A node holds, for every page group, the physical pages of its stretch of
tokens. Pages of a group may be missing (a window moved on, or they were evicted); then not every position can
be the end of a hit, which the group decides (`KVGroup.hit_is_valid`).

A request locks what it reads on the path to the end of its hit; each group's `TreePages` knows what that is.
Time is a counter of calls, not a clock, so replays agree.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.groups import KVGroup
from serving.kvcache.match_watch import MatchWatcher
from serving.kvcache.radix_node import PrefixLock, RadixNode, common_path, upward
from serving.kvcache.tokens import TokenIds, TokenSequence

MIN_SWEEP = 64  # cache salts that are kept before unused ones are looked for


class RadixTree:
    """The prefix cache of one engine.

    Args:
      page_tok: tokens per page.
      groups: the page groups whose pages it holds.

    Attributes:
      pages: by group, its pages in the tree.
      watcher: waiting requests that are told when their match may have changed.
      on_remove: called with every node that is evicted.

    A hit for a request that needs the scores of its prefix (`scored`) ends where a node with a snapshot ends.
    """

    def __init__(self, page_tok: int, groups: Sequence[KVGroup]):
        self.page_tok = page_tok
        self._groups = tuple(groups)
        self.pages = [group.tree_pages(i, page_tok) for i, group in enumerate(groups)]
        self.watcher = MatchWatcher()
        self.on_remove: Callable[[RadixNode], None] = lambda node: None
        self._with_gaps = [g for g, pages in enumerate(self.pages) if pages.may_have_gaps]
        self._roots: dict[Hashable, RadixNode] = {}
        self._sweep_at = MIN_SWEEP
        self._nodes_alive = 0  # the roots not counted
        self._seq = itertools.count()
        self._calls = 0

    # ---- reading ----

    def match(self, tokens: TokenSequence, cache_salt: Hashable, limit_tok: int, scored: bool = False) -> int:
        """Length in tokens of the longest valid hit, at most `limit_tok`; changes nothing."""
        root = self._roots.get(cache_salt)
        if root is None:
            return 0
        return self._valid_end(common_path(root, tokens, self.page_tok), limit_tok, scored)

    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> list[RadixNode]:
        """Nodes that agree with `tokens` to their end, from the root down; changes nothing."""
        root = self._roots.get(cache_salt)
        found = [] if root is None else common_path(root, tokens, self.page_tok)
        return [node for node, same in found if same == len(node.key)]

    def watch(
        self, id: str, tokens: TokenSequence, cache_salt: Hashable, limit_tok: int, scored: bool = False
    ) -> int:
        """`match`; from now on `watcher` names `id` whenever the answer may have changed."""
        node = root = self._root(cache_salt)
        path = common_path(root, tokens, self.page_tok)
        head: Hashable | None = None
        at = 0
        if path:
            node, same = path[-1]
            at = node.start + same
        if at == node.end:
            head = tokens.head(at, self.page_tok) if len(tokens) - at >= self.page_tok else None
        self.watcher.put(id, node, head)
        return self._valid_end(path, limit_tok, scored)

    def acquire(
        self, tokens: TokenSequence, cache_salt: Hashable, limit_tok: int, scored: bool = False
    ) -> tuple[PrefixLock, int]:
        """Locks the longest valid hit; the lock and the hit's length. Splits a node to end there."""
        self._calls += 1
        root = self._root(cache_salt)
        path = common_path(root, tokens, self.page_tok)
        hit = self._valid_end(path, limit_tok, scored)
        end = root
        for node, _ in path:
            if node.start >= hit:
                break
            node.used = self._calls
            end = node if node.end <= hit else self._split(node, hit - node.start)
        return self._lock(end, next_position=hit), hit

    def lock_nothing(self, cache_salt: Hashable) -> PrefixLock:
        """The lock of a request that reads nothing of the tree."""
        return self._lock(self._root(cache_salt), next_position=0)

    def path_pages(self, lock: PrefixLock) -> list[list[int]]:
        """By group, the physical pages from position 0 to the lock's end (NULL_PAGE where missing)."""
        pages: list[list[int]] = [[] for _ in self.pages]
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
          The node where `tokens` end, and by group the pages that the tree did not take because it holds the
          same tokens already. The caller frees them or, where it still reads them, swaps them.
        """
        self._calls += 1
        node, at = self._root(cache_salt), 0
        spare: list[list[int]] = [[] for _ in self.pages]
        for child, same in common_path(node, tokens, self.page_tok):
            node = child if same == len(child.key) else self._split(child, same)
            node.used = self._calls
            at = node.end
            self._fill(node, pages, spare)
        if at < len(tokens):
            node = self._attach(node, tokens, at, pages)
        return node, spare

    def advance(self, lock: PrefixLock, end: RadixNode, next_position: int) -> PrefixLock:
        """Moves a request's lock to a deeper node; the new one is taken before the old one is released."""
        new = self._lock(end, next_position)
        self.release(lock)
        return new

    def slide(self, lock: PrefixLock, next_position: int) -> None:
        """Unlocks pages that a query at `next_position` cannot reach any more."""
        for g, pages in enumerate(self.pages):
            first = pages.first_locked(lock.end, next_position)
            if first > lock.first[g]:
                pages.unlock(lock.end, lock.first[g], first, self._offer)
                lock.first[g] = first

    def release(self, lock: PrefixLock) -> None:
        """Drops a request's lock; its path becomes evictable where no other request reads."""
        for pages, first in zip(self.pages, lock.first):
            pages.unlock(lock.end, first, lock.end.end // self.page_tok, self._offer)
        for node in upward(lock.end):
            node.ref_count -= 1
            if node.ref_count == 0:
                for pages in self.pages:
                    pages.count_path(node, +1)
                self._offer(node)

    def evict(self, group: int, wanted: int) -> list[list[int]]:
        """Frees at least `wanted` pages of `group` if that many are evictable, least recently used first.

        Where the group evicts whole nodes, a leaf goes with the pages of all groups. Where it evicts single
        pages, the node stays for the other groups unless it serves none of them.

        Returns:
          By group, the pages freed.
        """
        freed: list[list[int]] = [[] for _ in self.pages]
        pages = self.pages[group]
        while len(freed[group]) < wanted and (entry := pages.next_in_line()):
            node, unused_since = entry
            if not node.alive:
                continue
            if not unused_since:
                self._offer(node)
            elif not pages.may_evict(node):
                continue
            elif pages.evicts_node(node):
                self._remove(node, freed)
            else:
                self.watcher.touch_all()  # finding the hits below that have no window now would be a search
                freed[group].extend(pages.drop(node))
        return freed

    def nodes(self) -> Iterator[RadixNode]:
        """Every node but the roots, for checks."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent is not None:
                yield node

    # ---- inside ----

    def _root(self, cache_salt: Hashable) -> RadixNode:
        root = self._roots.get(cache_salt)
        if root is None:
            if len(self._roots) >= self._sweep_at:
                used = {salt: root for salt, root in self._roots.items() if root.children or root.watchers}
                self._roots, self._sweep_at = used, max(MIN_SWEEP, 2 * len(used))
            root = self._roots[cache_salt] = self._node(TokenIds(()), 0, None, [[] for _ in self.pages])
        return root

    def _node(
        self, key: TokenSequence, start: int, parent: RadixNode | None, pages: list[list[int]]
    ) -> RadixNode:
        node = RadixNode(key, start, parent, pages, next(self._seq), used=self._calls)
        node.readers = [mine.new_readers(len(p)) for mine, p in zip(self.pages, pages)]
        node.queued = [False] * len(self.pages)
        return node

    def _valid_end(self, path: list[tuple[RadixNode, int]], limit_tok: int, scored: bool = False) -> int:
        """The longest end on `path` at which every group still has what a query would read."""
        if scored:
            ends_tok = [n.end for n, same in path if n.snapshot and same == len(n.key) and n.end <= limit_tok]
            return next((end for end in reversed(ends_tok) if self._valid_end(path, end) == end), 0)
        if not path:
            return 0
        page = self.page_tok
        matched = path[-1][0].start + path[-1][1]
        ends = min(matched, limit_tok) // page
        if not self._with_gaps:
            return ends * page
        best, missing_tok = 0, dict.fromkeys(self._with_gaps, 0)
        have = {g: [p for node, _ in path for p in node.pages[g]] for g in self._with_gaps}
        for end in range(1, ends + 1):
            for g in self._with_gaps:
                if have[g][end - 1] == NULL_PAGE:
                    missing_tok[g] = end * page
            if all(self._groups[g].hit_is_valid(end * page, missing_tok[g]) for g in self._with_gaps):
                best = end
        return best * page

    def _split(self, node: RadixNode, at: int) -> RadixNode:
        """Cuts `node` after `at` tokens; the new upper half is returned, the lower keeps its identity."""
        cut = at // self.page_tok
        parent = node.parent
        assert parent is not None
        assert 0 < at < len(node.key)
        upper = self._node(node.key.cut(0, at), node.start, parent, [p[:cut] for p in node.pages])
        self.watcher.touch(node, None)
        upper.ref_count, upper.used = node.ref_count, node.used
        upper.readers = [r[:cut] for r in node.readers]
        parent.children[node.key.head(0, self.page_tok)] = upper
        upper.children[node.key.head(at, self.page_tok)] = node
        node.key, node.start, node.parent = node.key.cut(at, len(node.key)), node.start + at, upper
        node.pages = [p[cut:] for p in node.pages]
        node.readers = [r[cut:] for r in node.readers]
        self._nodes_alive += 1
        self._offer(upper)
        return upper

    def _attach(
        self, parent: RadixNode, tokens: TokenSequence, at: int, pages: Sequence[Sequence[int]]
    ) -> RadixNode:
        first = at // self.page_tok
        node = self._node(tokens.cut(at, len(tokens)), at, parent, [list(p[first:]) for p in pages])
        head = node.key.head(0, self.page_tok)
        parent.children[head] = node
        self._nodes_alive += 1
        self.watcher.touch(parent, head)
        for mine in self.pages:
            mine.attach(node)
        self._offer(node)
        return node

    def _fill(self, node: RadixNode, pages: Sequence[Sequence[int]], spare: list[list[int]]) -> None:
        """Takes what this node lacks from `pages`; the rest of its stretch goes to `spare`."""
        first = node.start // self.page_tok
        for g, mine in enumerate(node.pages):
            for i, page in enumerate(pages[g][first : first + len(mine)]):
                if page == NULL_PAGE or page == mine[i]:
                    continue
                if mine[i] != NULL_PAGE:
                    spare[g].append(page)
                    continue
                self.pages[g].fill(node, i, page)
                self.watcher.touch_all()
        self._offer(node)

    def _lock(self, end: RadixNode, next_position: int) -> PrefixLock:
        for node in upward(end):
            if node.ref_count == 0:
                for pages in self.pages:
                    pages.count_path(node, -1)
            node.ref_count += 1
        return PrefixLock(end, [pages.lock(end, next_position) for pages in self.pages])

    def _offer(self, node: RadixNode) -> None:
        """Puts a node in line for eviction in every group where it qualifies."""
        for pages in self.pages:
            pages.offer(node, self._nodes_alive)

    def _remove(self, node: RadixNode, freed: list[list[int]]) -> None:
        parent = node.parent
        assert parent is not None
        assert not node.children
        assert node.ref_count == 0
        if self._with_gaps:
            self.watcher.touch_all()
        self.on_remove(node)
        for group, pages in zip(freed, self.pages):
            group.extend(pages.drop(node))
        node.alive = False
        self._nodes_alive -= 1
        for head in list(node.watchers):
            self.watcher.touch(node, head)
        del parent.children[node.key.head(0, self.page_tok)]
        self._offer(parent)
