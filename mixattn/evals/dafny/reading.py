"""What reading a program yields, and what no hint may hold."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mixattn.evals.dafny.expressions import is_word
from mixattn.evals.dafny.grammar import ATTRIBUTES
from mixattn.evals.dafny.lexer import Token

NO_BODY = "<no body>"


class Span(NamedTuple):
    """Tokens `start` up to, without, `end` are a hint of this kind."""

    kind: str
    start: int
    end: int


class Cheat(NamedTuple):
    """Something that a solution may not hold; `text` quotes it."""

    rule: str
    line: int
    text: str


@dataclass(slots=True)
class Member:
    """A method, function or lemma: its words, to know new names from old ones."""

    name: str
    kind: str
    words: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Reading:
    """What `read` found.

    Attributes:
      code: the tokens that are not hints, in order: the code projection.
      spans: the hints, outermost only, in order.
      inner: the same, but the hints inside an erased block instead of the block.
      cheats: what is refused inside the hints.
      members: by dotted name.
    """

    tokens: list[Token]
    code: list[Token] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    inner: list[Span] = field(default_factory=list)
    cheats: list[Cheat] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)


def forbidden(reading: Reading) -> Iterable[Cheat]:
    """What no hint may hold."""
    tokens = reading.tokens
    for span in reading.spans:
        for i in range(span.start, span.end):
            rule = rule_of(tokens, i)
            if rule:
                quoted = " ".join(t[0] for t in tokens[i : min(i + 8, span.end)])
                yield Cheat(rule, tokens[i].line, quoted[:80])


_WORDS = {"assume": "assume", "expect": "expect", "include": "include", "free": "free", "...": "skeleton"}


def rule_of(tokens: list[Token], i: int) -> str:
    """What forbids token `i` in a hint; empty if nothing does."""
    text = tokens[i][0]
    if text in _WORDS:
        return _WORDS[text]
    following = tokens[i + 1][0] if i + 1 < len(tokens) else ""
    if text == "decreases" and following == "*":
        return "decreases *"
    if text == "{" and following == ":":
        name = tokens[i + 2][0] if i + 2 < len(tokens) else ""
        return "" if name in ATTRIBUTES else "attribute"
    if text == "@" and is_word(following) and tokens[i - 1][0] not in _AT:
        return "attribute"
    return ""


_AT = frozenset({"old", "unchanged", "allocated", "fresh"})
