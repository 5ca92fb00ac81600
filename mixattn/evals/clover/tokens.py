"""Dafny text as tokens, so that a word in a comment or a string is never taken for code."""

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<comment>/\*)
    |(?P<string>@"(?:[^"]|"")*"|"(?:\\.|[^"\\\n])*")
    |(?P<char>'(?:\\u[0-9a-fA-F]{4}|\\.|[^'\\\n])')
    |(?P<word>[A-Za-z_][\w'?]*\#?)
    |(?P<number>\d[\w]*(?:\.\d+)?)
    |(?P<symbol><==>|==>|<==|-->|:=|:\||::|==|!=|<=|>=|&&|\|\||\.\.|=>|->|~>|[^\s"])
    """,
    re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
OPEN, CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


class CloverToken(NamedTuple):
    """One token. `kind`: string, char, word, number or symbol; `start` and `end` are offsets in the text."""

    kind: str
    text: str
    start: int
    end: int


def tokens(text: str) -> list[CloverToken]:
    """The tokens of a Dafny text, without comments.

    Raises:
      ValueError: a string or comment does not end, or brackets do not match; the sentence names the line.
    """
    found: list[CloverToken] = []
    open_brackets: list[CloverToken] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"line {line_of(text, at)}: a string does not end")
        if match.lastgroup == "comment":
            at = _comment_end(text, at)
            continue
        if match.lastgroup != "space":
            token = CloverToken(str(match.lastgroup), match[0], at, match.end())
            _balance(token, open_brackets, text)
            found.append(token)
        at = match.end()
    if open_brackets:
        raise ValueError(
            f"line {line_of(text, open_brackets[-1].start)}: {open_brackets[-1].text!r} is not closed"
        )
    return found


def line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def closing(found: list[CloverToken], start: int) -> int:
    """Index of the bracket that closes `found[start]`."""
    depth = 0
    for i in range(start, len(found)):
        if found[i].kind == "symbol":
            depth += (found[i].text in OPEN) - (found[i].text in CLOSE)
            if depth == 0:
                return i
    raise ValueError(f"{found[start].text!r} is not closed")


def _comment_end(text: str, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    raise ValueError(f"line {line_of(text, start)}: a comment does not end")


def _balance(token: CloverToken, open_brackets: list[CloverToken], text: str) -> None:
    if token.kind != "symbol":
        return
    if token.text in OPEN:
        open_brackets.append(token)
    elif token.text in CLOSE:
        if not open_brackets or OPEN[open_brackets[-1].text] != token.text:
            raise ValueError(f"line {line_of(text, token.start)}: {token.text!r} closes nothing")
        open_brackets.pop()
