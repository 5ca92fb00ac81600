"""Splits Dafny text into tokens as Dafny's own scanner does: nested comments, strings, words with primes.

Where two readings are possible the one with more tokens is taken, so that no word hides inside another.
"""

import re
from bisect import bisect_right
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
    (?: [ \t\f\v\ufeff\r\n]+ | //[^\r\n]* )*+
    (
      /\* | @"(?:[^"]|"")*" | "(?:[^"\\\r\n]|\\[^\r\n])*"
    | '(?:[^'\\\r\n]|\\u[0-9a-fA-F]{4}|\\[^\r\n])'(?![A-Za-z0-9_?])
    | 0x[0-9a-fA-F][0-9a-fA-F_]* | [0-9][0-9_]*(?:\.[0-9][0-9_]*)?
    | [A-Za-z_?'][A-Za-z0-9_?']*
    | <==> | ==> | <== | \.\.\. | :: | := | :\| | :- | == | != | <= | >= | => | -> | ~> | --> | && | \|\|
    | !! | \.\. | \S
    )?
    """,
    re.VERBOSE,
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_COMMENT_MARK = re.compile(r"/\*|\*/")
_DIRECTIVE = re.compile(r"^[ \t\f\v\ufeff]*#(?:if|elsif|else|endif)[^\r\n]*", re.MULTILINE)


def lex(program: str) -> list[Token]:
    """The tokens of `program`, comments left out.

    Raises:
      DafnyTextError: a comment or string does not end, or a NUL character.
    """
    tokens: list[Token] = []
    add, new, match = tokens.append, tuple.__new__, _TOKEN.match
    line_ends = [found.end() for found in _LINE_END.finditer(program)]
    line_ends.append(len(program) + 1)
    at, line, size, next_line = 0, 1, len(program), line_ends[0]
    while at < size:
        found = match(program, at)
        assert found is not None  # every part of the pattern is optional
        text = found[1]
        start, at = found.span(1)
        if text is None:
            at = found.end()
            if at < size:  # blanks that Unicode knows and Dafny does not
                raise DafnyTextError(bisect_right(line_ends, at) + 1, f"unexpected character {program[at]!r}")
            break
        while start >= next_line:
            next_line = line_ends[line]
            line += 1
        if text == "/*":
            at = _comment_end(program, start, line)
        elif text == '"' or text == "\0":
            raise DafnyTextError(
                line, "a NUL character" if text == "\0" else "a string does not end on its line"
            )
        else:
            add(new(Token, (text, start, at, line)))
    return tokens


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
