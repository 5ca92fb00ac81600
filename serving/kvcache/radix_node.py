"""What the prefix tree is made of: stretches of tokens with the pages of their KV, and leases on them."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.tokens import TokenSequence


@dataclass(eq=False, slots=True)
class RadixNode:
    """A stretch of tokens below `parent`, starting at position `start`; `key` is whole pages."""

    key: TokenSequence
    start: int
    parent: "RadixNode | None"
    pages: list[list[int]]  # by group, one entry a page; NULL_PAGE where a window page is gone
    seq: int
    children: dict[Hashable, "RadixNode"] = field(default_factory=dict)
    ref_count: int = 0  # requests whose path runs through here
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
class PrefixLock:
    """A request's locks: the path down to `end`; by group, the first page that its window still reads."""

    end: RadixNode
    first: list[int]


def upward(node: RadixNode) -> Iterator[RadixNode]:
    """`node` and its ancestors, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def live(pages: Sequence[int]) -> int:
    return sum(p != NULL_PAGE for p in pages)
