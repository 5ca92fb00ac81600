"""A radix tree of dispatched prompts: an estimate of the prompt prefixes that each worker holds in its cache.

A prompt is a sequence of blocks `(key, tokens)`, where equal keys stand for equal tokens. It is an estimate
because workers do not report evictions. What a worker reports of a request corrects it: a block that it is
known to have computed once and does not find any more is forgotten for that worker, with all that lies
behind it. So a wrong match costs at most one request per block.

Every worker of a node is one of its parent's: who holds a prefix holds its beginning.
"""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

from serving.fair.routers.load_index import WorkerId

type Block = tuple[Hashable, int]


@dataclass(eq=False, slots=True)
class PrefixNode:
    """One block of prompts; `end_tok` counts the tokens from the root to its end.

    Attributes:
      workers: who is assumed to hold it, and whether it has computed it: False while its first request with
        this block may still be on its way.
      used: when a prompt last ended here, counted in prompts; 0 for never.
    """

    key: Hashable
    end_tok: int
    parent: "PrefixNode | None"
    children: "dict[Hashable, PrefixNode]" = field(default_factory=dict)
    workers: dict[WorkerId, bool] = field(default_factory=dict)
    used: int = 0

    @property
    def start_tok(self) -> int:
        return self.parent.end_tok if self.parent is not None else 0


class PrefixMap:
    """Maps prompt prefixes to the workers that are assumed to hold them."""

    def __init__(self, max_blocks: int = 100_000) -> None:
        """`max_blocks`: maximum number of nodes; above it, the least recently used leaves are dropped."""
        self.max_blocks = max_blocks
        self.root = PrefixNode(None, 0, None)
        # Nodes without children, least recently used first; others are as recent as their children.
        self._leaves: OrderedDict[PrefixNode, None] = OrderedDict()
        self._size = self._prompts = 0
        self._last_blocks: Sequence[Block] | None = None
        self._last_path: list[PrefixNode] = []
        self.disproved = 0  # blocks that a worker was assumed to hold and did not

    def __len__(self) -> int:
        return self._size

    def path(self, blocks: Sequence[Block]) -> list[PrefixNode]:
        """The known nodes along the prompt, without the root."""
        if self._last_blocks is blocks:  # a dispatch asks several times, between two changes of the tree
            return self._last_path
        node, found = self.root, []
        for key, _ in blocks:
            child = node.children.get(key)
            if child is None:
                break
            found.append(child)
            node = child
        self._last_blocks, self._last_path = blocks, found
        return found

    def match(self, blocks: Sequence[Block]) -> dict[WorkerId, int]:
        """Estimated prompt tokens held by each worker; workers that hold none are left out."""
        found: dict[WorkerId, int] = {}
        for node in reversed(self.path(blocks)):
            for worker in node.workers:
                found.setdefault(worker, node.end_tok)
        return found

    def longest(self, blocks: Sequence[Block]) -> tuple[int, Collection[WorkerId]]:
        """The longest prefix that anybody is assumed to hold, in tokens, and its holders."""
        for node in reversed(self.path(blocks)):
            if node.workers:
                return node.end_tok, node.workers.keys()
        return 0, ()

    def held_tok(self, blocks: Sequence[Block], worker: WorkerId) -> int:
        """Prompt tokens that `worker` is assumed to hold."""
        for node in reversed(self.path(blocks)):  # who holds a node holds all before it
            if worker in node.workers:
                return node.end_tok
        return 0

    def insert(self, blocks: Sequence[Block], worker: WorkerId) -> list[PrefixNode]:
        """Records that the prompt was dispatched to `worker`; returns its nodes."""
        nodes = list(self.path(blocks))
        self._last_blocks = None
        node = nodes[-1] if nodes else self.root
        new = blocks[len(nodes) :]
        if new:
            self._leaves.pop(node, None)
        for key, tokens in new:
            child = node.children[key] = PrefixNode(key, node.end_tok + tokens, node)
            nodes.append(child)
            node = child
        self._size += len(new)
        self._use(node)
        for node in reversed(nodes):
            if worker in node.workers:  # and so of all before it
                break
            node.workers[worker] = False
        while self._size > self.max_blocks:
            self._drop(next(iter(self._leaves)))
        return nodes

    def _use(self, node: PrefixNode) -> None:
        """A prompt ends at this node."""
        self._prompts += 1
        node.used = self._prompts
        if not node.children and node is not self.root:
            self._leaves[node] = None
            self._leaves.move_to_end(node)

    def confirm(self, blocks: Sequence[Block], worker: WorkerId) -> None:
        """The worker has computed this prompt."""
        for node in self.path(blocks):
            if worker in node.workers:
                node.workers[worker] = True

    def disprove(self, blocks: Sequence[Block], worker: WorkerId, hit_tok: int) -> None:
        """The worker found only `hit_tok` tokens of this prompt, and computes the rest now.

        The prompt's last block proves nothing: its last token is always computed.
        """
        path = self.path(blocks)
        for i, node in enumerate(path[:-1]):
            if hit_tok <= node.start_tok and node.workers.get(worker):
                self.disproved += self._remove_below(node, worker)
                for again in path[i:]:
                    again.workers[worker] = False
                return

    def remove_worker(self, worker: WorkerId) -> None:
        """Removes a worker and all prefixes that only it held."""
        self._last_blocks = None
        todo, seen = list(self.root.children.values()), list[PrefixNode]()
        while todo:  # parents before their children; who does not hold a node holds none behind it
            node = todo.pop()
            if worker in node.workers:
                del node.workers[worker]
                seen.append(node)
                todo += node.children.values()
        for node in reversed(seen):
            if not node.workers and not node.children:
                self._drop(node)

    def _remove_below(self, top: PrefixNode, worker: WorkerId) -> int:
        """Removes a worker from a node and all nodes behind it; returns of how many."""
        todo, removed = [top], 0
        while todo:
            node = todo.pop()
            del node.workers[worker]
            removed += 1
            todo += [child for child in node.children.values() if worker in child.workers]
        return removed

    def _drop(self, node: PrefixNode) -> None:
        self._last_blocks = None
        self._leaves.pop(node, None)
        self._size -= 1
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        if not parent.children and parent is not self.root:
            self._leaves[parent] = None
            if parent.used < node.used:
                parent.used = node.used
                self._leaves.move_to_end(parent, last=False)
