"""Which worker is believed to hold which beginning of a prompt: a tree of what was sent where.

A prompt comes as blocks `(key, tokens)`; equal keys are equal tokens. Believed, because workers evict without
telling; what a request really found is reported later and corrects its bill, not the tree.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

type Block = tuple[Hashable, int]
type WorkerId = int


@dataclass(eq=False, slots=True)
class PrefixNode:
    """One block below its parent; `end_tok` tokens from the root to its end."""

    key: Hashable
    end_tok: int
    parent: "PrefixNode | None"
    children: "dict[Hashable, PrefixNode]" = field(default_factory=dict)
    workers: dict[WorkerId, None] = field(default_factory=dict)


class PrefixMap:
    def __init__(self, max_blocks: int = 100_000):
        """`max_blocks`: nodes kept; beyond, leaves unused for longest go."""
        self.max_blocks = max_blocks
        self.root = PrefixNode(None, 0, None)
        self._used: dict[PrefixNode, None] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._used)

    def walk(self, blocks: Sequence[Block]) -> Iterator[PrefixNode]:
        """Known nodes along the prompt, without the root."""
        node: PrefixNode | None = self.root
        for key, _ in blocks:
            assert node is not None
            node = node.children.get(key)
            if node is None:
                return
            yield node

    def matched(self, blocks: Sequence[Block]) -> dict[WorkerId, int]:
        """Tokens of the prompt that each worker is believed to hold; workers without any are left out."""
        found: dict[WorkerId, int] = {}
        for node in self.walk(blocks):
            for worker in node.workers:
                found[worker] = node.end_tok
        return found

    def insert(self, blocks: Sequence[Block], worker: WorkerId) -> list[PrefixNode]:
        """Notes that the prompt went to `worker`; returns its nodes."""
        node, line = self.root, []
        for key, tokens in blocks:
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = PrefixNode(key, node.end_tok + tokens, node)
            child.workers[worker] = None
            line.append(child)
            node = child
        for node in reversed(line):  # a parent is never older than its children, so leaves go first
            self._used.pop(node, None)
            self._used[node] = None
        while len(self._used) > self.max_blocks:
            self._drop(next(iter(self._used)))
        return line

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone with all it held."""
        for node in list(self._used):
            node.workers.pop(worker, None)
            if not node.workers and not node.children:
                self._drop(node)

    def _drop(self, node: PrefixNode) -> None:
        del self._used[node]
        assert node.parent is not None
        del node.parent.children[node.key]
