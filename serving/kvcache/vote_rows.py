"""Rows of scores on the device: one for each prompt that is being computed, and snapshots at prefixes' ends.

The scores of a prefix depend on where it ends, so they are no property of pages: a snapshot belongs to the
end of one node of the prefix tree. Row 0 holds zeros, from which a prompt without a hit begins.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serving.kvcache.radix_node import RadixNode

NO_VOTES = 0


@dataclass(eq=False, slots=True)
class SequenceVotes:
    """Rows of scores of a request whose prompt is being computed; see `VoteRows`.

    Attributes:
      row: where its own sums are.
      base: the snapshot that its hit of `hit_tok` tokens begins from; 0 = nothing or read already.
      marks: ends of prefixes at which it leaves a snapshot: a chunk ends there.
      mark_row: the row of a snapshot that the planned chunk makes; 0 = none.
    """

    row: int
    base: int
    hit_tok: int
    marks: list[int]
    mark_row: int = NO_VOTES


class VoteRows:
    """Which rows are free, in use, or snapshots, oldest use first.

    Args:
      working: prompts that can be computed at once.
      snapshots: ends of prefixes whose scores are kept.
      changed: called when a snapshot is there, or is lost.
    """

    def __init__(self, working: int, snapshots: int, changed: Callable[[], None] = lambda: None):
        self.working, self.snapshots, self._changed = working, snapshots, changed
        self._free = list(range(working, 0, -1))
        self._spare = list(range(working + snapshots, working, -1))
        self._nodes: dict[int, RadixNode] = {}  # published, least recently used first
        self._readers: dict[int, int] = {}  # published rows that a prompt is yet to begin from

    @property
    def total(self) -> int:
        """Rows of the device's array."""
        return 1 + self.working + self.snapshots

    @property
    def free(self) -> int:
        """Prompts that may start."""
        return len(self._free)

    @property
    def stored(self) -> int:
        """Snapshots that exist."""
        return len(self._nodes)

    # ---- a prompt ----

    def begin(self, base: int, hit_tok: int, marks: list[int]) -> SequenceVotes:
        """Takes a row for a prompt, of which one must be free; until it is read, its base is not replaced."""
        if base:
            self._nodes[base] = self._nodes.pop(base)
            self._readers[base] = self._readers.get(base, 0) + 1
        return SequenceVotes(self._free.pop(), base, hit_tok, marks)

    def chunk_end(self, votes: SequenceVotes, computed_tok: int, upto_tok: int) -> int:
        """Where a chunk has to end to leave the next snapshot, for which a row is reserved."""
        end = min((mark for mark in votes.marks if mark > computed_tok), default=upto_tok)
        if end <= upto_tok and end in votes.marks and votes.mark_row == NO_VOTES:
            votes.mark_row = self._reserve()
        return min(end, upto_tok)

    def note(self, votes: SequenceVotes, computed_tok: int, end: RadixNode | None) -> None:
        """A chunk is computed; `end`: the node that ends with it, if it is in the tree."""
        if votes.base and computed_tok > votes.hit_tok:
            self._unread(votes)
        if votes.mark_row and computed_tok in votes.marks:
            self._publish(votes.mark_row, end)
            votes.mark_row = NO_VOTES

    def finish(self, votes: SequenceVotes) -> None:
        """The prompt is settled or gone."""
        self._free.append(votes.row)
        if votes.base:
            self._unread(votes)
        if votes.mark_row:
            self._spare.append(votes.mark_row)

    # ---- snapshots ----

    def _reserve(self) -> int:
        """A row for a new snapshot, in place of the least recently used one; 0 if all are being read."""
        if not self._spare:
            oldest = next((row for row in self._nodes if row not in self._readers), NO_VOTES)
            if oldest == NO_VOTES:
                return NO_VOTES
            self.drop(self._nodes[oldest])
        return self._spare.pop()

    def _publish(self, row: int, node: RadixNode | None) -> None:
        """The row holds the scores at the end of `node`; a second one of the same end is not needed."""
        if node is None or node.snapshot:
            self._spare.append(row)
            return
        node.snapshot = row
        self._nodes[row] = node
        self._changed()

    def _unread(self, votes: SequenceVotes) -> None:
        self._readers[votes.base] -= 1
        if not self._readers[votes.base]:
            del self._readers[votes.base]
        votes.base = NO_VOTES

    def drop(self, node: RadixNode) -> None:
        """Forgets the snapshot of a node that is evicted, if it has one."""
        if not node.snapshot:
            return
        row, node.snapshot = node.snapshot, NO_VOTES
        del self._nodes[row]
        assert row not in self._readers, "a snapshot is dropped before it is read"
        self._spare.append(row)
        self._changed()

    def check(self, in_use: Iterable[int], reserved: Iterable[int], nodes: Iterable[RadixNode]) -> None:
        """Asserts that every row has one holder."""
        working = sorted([*in_use, *self._free])
        assert working == list(range(1, self.working + 1)), "a row of votes is lost or held twice"
        rest = sorted([*self._spare, *self._nodes, *reserved])
        assert rest == list(range(self.working + 1, self.total)), "a snapshot is lost or held twice"
        assert {id(n) for n in nodes if n.snapshot} == {id(n) for n in self._nodes.values()}
        assert all(node.snapshot == row for row, node in self._nodes.items())
