"""What the prefix tree is made of: stretches of tokens with the pages of their KV, and leases on them."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.tokens import Tokens


@dataclass(eq=False, slots=True)
class Node:
    """A stretch of tokens below `parent`, starting at position `start`; `key` is whole pages."""

    key: Tokens
    start: int
    parent: "Node | None"
    pages: list[list[int]]  # by group, one entry a page; NULL_PAGE where a window page is gone
    seq: int
    children: dict[Hashable, "Node"] = field(default_factory=dict)
    lock: int = 0  # requests whose path runs through here
    readers: list[list[int]] = field(default_factory=list)  # by group and page: windows that reach it
    used: int = 0  # the tree's call counter at the last use
    queued: list[bool] = field(default_factory=list)  # by group: stands in the eviction line
    alive: bool = True
    # Waiting requests whose match ends here, by the page that would carry it on; None where it ends within.
    watchers: "dict[Hashable | None, set[str]]" = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + len(self.key)


@dataclass(slots=True)
class Lease:
    """A request's locks: the path down to `end`; by group, the first page that its window still reads."""

    end: Node
    first: list[int]


def upward(node: Node) -> Iterator[Node]:
    """`node` and its ancestors, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def live(pages: Sequence[int]) -> int:
    return sum(p != NULL_PAGE for p in pages)
