"""Splits Dafny text into tokens as Dafny's own scanner does: nested comments, strings, words with primes.

Where two readings are possible the one with more tokens is taken, so that no word hides inside another.
"""

import re
from typing import NamedTuple

MAX_DEPTH = 500


class Token(NamedTuple):
    """A token and its place; `end` is the offset behind it, `line` counts from 1."""

    text: str
    start: int
    end: int
    line: int


class DafnyTextError(ValueError):
    """A text that is no Dafny program, with the line where that shows."""

    def __init__(self, line: int, why: str):
        super().__init__(f"line {line}: {why}")
        self.line, self.why = line, why


_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\f\v\ufeff]+)
  | (?P<newline>\r\n|\r|\n)
  | (?P<comment>//[^\r\n]*)
  | (?P<open>/\*)
  | (?P<text>
      @"(?:[^"]|"")*" | "(?:[^"\\\r\n]|\\[^\r\n])*"
    | '(?:[^'\\\r\n]|\\u[0-9a-fA-F]{4}|\\[^\r\n])'(?![A-Za-z0-9_?])
    | 0x[0-9a-fA-F][0-9a-fA-F_]* | [0-9][0-9_]*(?:\.[0-9][0-9_]*)?
    | [A-Za-z_?'][A-Za-z0-9_?']*
    | <==> | ==> | <== | \.\.\. | :: | := | :\| | :- | == | != | <= | >= | => | -> | ~> | --> | && | \|\|
    | !! | \.\. | \S
    )
    """,
    re.VERBOSE,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")
_DIRECTIVE = re.compile(r"^[ \t\f\v\ufeff]*#(?:if|elsif|else|endif)[^\r\n]*", re.MULTILINE)


def lex(program: str) -> list[Token]:
    """The tokens of `program`, comments left out.

    Raises:
      DafnyTextError: a comment or string does not end, or a NUL character.
    """
    tokens: list[Token] = []
    at, line, size = 0, 1, len(program)
    match = _TOKEN.match
    while at < size:
        found = match(program, at)
        if found is None:  # only \S can fail, on blanks that Unicode knows and Dafny does not
            raise DafnyTextError(line, f"unexpected character {program[at]!r}")
        kind, end = found.lastgroup, found.end()
        if kind == "text":
            text = found[0]
            _whole(text, line)
            tokens.append(Token(text, at, end, line))
            line += text.count("\n") if text[0] == "@" else 0
        elif kind == "newline":
            line += 1
        elif kind == "open":
            end = _comment_end(program, at, line)
            line += len(re.findall(r"\r\n|\r|\n", program[at:end]))
        at = end
    return tokens


def _whole(text: str, line: int) -> None:
    if text == '"':
        raise DafnyTextError(line, "a string does not end on its line")
    if text == "\0":
        raise DafnyTextError(line, "a NUL character")


def _comment_end(program: str, start: int, line: int) -> int:
    depth = 0
    for mark in _COMMENT_MARK.finditer(program, start):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    raise DafnyTextError(line, "a comment does not end")


def partners(tokens: list[Token]) -> list[int]:
    """For each bracket the index of its partner, -1 for other tokens.

    Raises:
      DafnyTextError: brackets do not pair up, or nest more than MAX_DEPTH deep.
    """
    closing = {")": "(", "]": "[", "}": "{"}
    found = [-1] * len(tokens)
    open_: list[int] = []
    for i, token in enumerate(tokens):
        text = token[0]
        if text in ("(", "[", "{"):
            open_.append(i)
            if len(open_) > MAX_DEPTH:
                raise DafnyTextError(token.line, f"brackets nest more than {MAX_DEPTH} deep")
        elif text in closing:
            if not open_ or tokens[open_[-1]][0] != closing[text]:
                raise DafnyTextError(token.line, f"{text!r} closes nothing")
            found[i] = open_.pop()
            found[found[i]] = i
    if open_:
        raise DafnyTextError(tokens[open_[-1]].line, f"{tokens[open_[-1]].text!r} is not closed")
    return found


def directives(program: str) -> list[tuple[int, str]]:
    """(line, text) of `#if` and its kin. Dafny 2.3 obeys them before it reads comments and strings."""
    text = re.sub(r"\r\n?", "\n", program)
    return [(text.count("\n", 0, m.start()) + 1, m[0].strip()) for m in _DIRECTIVE.finditer(text)]
