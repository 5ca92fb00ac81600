"""A radix tree of dispatched prompts: an estimate of the prompt prefixes that each worker holds in its cache.

A prompt is a sequence of blocks `(key, tokens)`, where equal keys stand for equal tokens. It is an estimate
because workers do not report evictions. The measured hit of a request corrects its charge, not the tree.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

type Block = tuple[Hashable, int]
type WorkerId = int


@dataclass(eq=False, slots=True)
class PrefixNode:
    """One block of prompts; `end_tok` counts the tokens from the root to its end."""

    key: Hashable
    end_tok: int
    parent: "PrefixNode | None"
    children: "dict[Hashable, PrefixNode]" = field(default_factory=dict)
    workers: dict[WorkerId, None] = field(default_factory=dict)


class PrefixMap:
    """Maps prompt prefixes to the workers that are assumed to hold them."""

    def __init__(self, max_blocks: int = 100_000) -> None:
        """`max_blocks`: maximum number of nodes; above it, the least recently used leaves are dropped."""
        self.max_blocks = max_blocks
        self.root = PrefixNode(None, 0, None)
        self._lru: dict[PrefixNode, None] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._lru)

    def walk(self, blocks: Sequence[Block]) -> Iterator[PrefixNode]:
        """Yields the known nodes along the prompt, without the root."""
        node: PrefixNode | None = self.root
        for key, _ in blocks:
            assert node is not None
            node = node.children.get(key)
            if node is None:
                return
            yield node

    def match(self, blocks: Sequence[Block]) -> dict[WorkerId, int]:
        """Estimated prompt tokens held by each worker; workers that hold none are left out."""
        found: dict[WorkerId, int] = {}
        for node in self.walk(blocks):
            for worker in node.workers:
                found[worker] = node.end_tok
        return found

    def insert(self, blocks: Sequence[Block], worker: WorkerId) -> list[PrefixNode]:
        """Records that the prompt was dispatched to `worker`; returns its nodes."""
        node, nodes = self.root, []
        for key, tokens in blocks:
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = PrefixNode(key, node.end_tok + tokens, node)
            child.workers[worker] = None
            nodes.append(child)
            node = child
        for node in reversed(nodes):  # a parent is never older than its children, so leaves are dropped first
            self._lru.pop(node, None)
            self._lru[node] = None
        while len(self._lru) > self.max_blocks:
            self._drop(next(iter(self._lru)))
        return nodes

    def remove_worker(self, worker: WorkerId) -> None:
        """Removes a worker and all prefixes that only it held."""
        for node in list(self._lru):
            node.workers.pop(worker, None)
            if not node.workers and not node.children:
                self._drop(node)

    def _drop(self, node: PrefixNode) -> None:
        del self._lru[node]
        assert node.parent is not None
        del node.parent.children[node.key]
