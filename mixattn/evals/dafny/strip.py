"""Removes hints from a program, token by token: what is left does and promises the same."""

from mixattn.evals.dafny.lexer import Token
from mixattn.evals.dafny.reader import read
from mixattn.evals.dafny.reading import Reading, Span

# What goes. Lemmas, their calls, ghost variables and attributes stay, as in the public benchmark.
KINDS = frozenset({"assert", "invariant", "decreases", "calc", "forall", "reveal"})


def strip(program: str) -> str:
    """`program` without its hints. Lines of which nothing is left are left out.

    `strip(strip(x)) == strip(x)`, and the code projection stays as it is.

    Raises:
      DafnyTextError: the text is not Dafny as far as it was followed.
    """
    reading = read(program)
    for span in reversed(removable(reading)):
        first, last = reading.tokens[span.start], reading.tokens[span.end - 1]
        program = without(program, first.start, last.end)
    return program


def removable(reading: Reading) -> list[Span]:
    """The spans that `strip` removes, in order, none inside another."""
    spans = [s for s in reading.inner if s.kind in KINDS and not _labelled(reading.tokens, s.start)]
    return sorted(spans, key=lambda span: span.start)


def _labelled(tokens: list[Token], start: int) -> bool:
    """Whether a label precedes, which needs a statement behind it."""
    return start >= 3 and tokens[start - 1].text == ":" and tokens[start - 3].text == "label"


def without(program: str, start: int, end: int) -> str:
    """Cuts [start, end); and the line, or what separates words, with it."""
    before, after = program[:start], program[end:]
    bare = before.rstrip(" \t")
    rest = after.lstrip(" \t")
    if not bare or bare[-1] in "\r\n":
        if rest.startswith("\r\n"):
            return bare + rest[2:]
        if rest[:1] in ("\n", "\r"):
            return bare + rest[1:]
        return before + rest
    if rest[:1] in ("", "\r", "\n"):
        return bare + rest
    return f"{bare} {rest}"
