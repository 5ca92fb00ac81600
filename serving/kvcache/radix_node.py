"""What the prefix tree is made of: stretches of tokens with the pages of their KV, and locks on them."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from serving.kvcache.allocator import NULL_PAGE
from serving.kvcache.tokens import TokenSequence


@dataclass(eq=False, slots=True)
class RadixNode:
    """A stretch of tokens below `parent`, starting at position `start`.

    Attributes:
      key: its tokens, whole pages.
      pages: by group, one entry per page; NULL_PAGE where the page is gone.
      seq: order of creation.
      ref_count: requests whose path runs through here.
      readers: by group and page, requests that read the page, in groups that count them.
      used: the tree's call counter at the last use.
      snapshot: row of the scores of all queries up to its end, in `vote_rows.VoteRows`; 0 = none. A node that
        is cut keeps it: its end stays.
      queued: by group, whether it stands in the eviction line.
      watchers: waiting requests whose match ends here, by the page that would carry it on; None where it ends
        within the node.
      end: position behind its last token; where a node is cut in two, that of the lower one stays.
    """

    key: TokenSequence
    start: int
    parent: "RadixNode | None"
    pages: list[list[int]]
    seq: int
    children: dict[Hashable, "RadixNode"] = field(default_factory=dict)
    ref_count: int = 0
    readers: list[list[int]] = field(default_factory=list)
    used: int = 0
    snapshot: int = 0
    queued: list[bool] = field(default_factory=list)
    alive: bool = True
    watchers: dict[Hashable | None, set[str]] = field(default_factory=dict)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.start + len(self.key)


@dataclass(slots=True)
class PrefixLock:
    """A request's lock on the path down to `end`; by group, the first page that it still reads."""

    end: RadixNode
    first: list[int]


def upward(node: RadixNode) -> Iterator[RadixNode]:
    """`node` and its ancestors, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def common_path(root: RadixNode, tokens: TokenSequence, page_tok: int) -> list[tuple[RadixNode, int]]:
    """Nodes below `root` along `tokens`, with how many tokens of each agree (whole pages)."""
    path: list[tuple[RadixNode, int]] = []
    node, at, last = root, 0, len(tokens) - page_tok
    while at <= last and node.children:
        child = node.children.get(tokens.head(at, page_tok))
        if child is None:
            break
        same = tokens.common(at, child.key) // page_tok * page_tok
        path.append((child, same))
        at += same
        if at < child.end:
            break
        node = child
    return path


def live(pages: Sequence[int]) -> int:
    """How many of `pages` exist."""
    return sum(p != NULL_PAGE for p in pages)
