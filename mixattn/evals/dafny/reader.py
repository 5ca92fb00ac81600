"""Tells hints from code: a program's code projection, the spans of its hints, and what hints may not hold.

A hint is what can be added to a program without a change of what it does or promises: loop clauses,
assertions, calculations, lemma calls, ghost variables with new names, and new lemmas and pure functions.
"""

from collections.abc import Mapping

from mixattn.evals.dafny.expressions import is_word
from mixattn.evals.dafny.grammar import CALLABLES, CONTAINERS, DECLARATIONS, MODIFIERS
from mixattn.evals.dafny.lexer import Token, directives, lex, partners
from mixattn.evals.dafny.reading import Cheat, Member, Reading, forbidden
from mixattn.evals.dafny.statements import CLAUSE_WORDS, LEMMAS, Statements


def read(program: str, original: Reading | None = None) -> Reading:
    """Reads a program.

    Args:
      original: the program that hints were added to; names that it lacks are new. None: no name is new.

    Raises:
      DafnyTextError: the text is not Dafny as far as it was followed.
    """
    tokens = lex(program)
    reader = _Reader(tokens, partners(tokens), original)
    reader.declarations(0, len(tokens), "")
    reading = reader.reading
    reading.cheats += [Cheat("directive", line, text[:80]) for line, text in directives(program)]
    reading.cheats += forbidden(reading)
    return reading


class _Reader(Statements):
    """Reads declarations, and the statements in them."""

    def __init__(self, tokens: list[Token], partner: list[int], original: Reading | None):
        super().__init__(tokens, partner)
        self._old: Mapping[str, Member] | None = original.members if original else None
        self._old_words = {t[0] for t in original.tokens} if original else set()

    def declarations(self, i: int, end: int, path: str) -> None:
        """Reads the declarations of a module, class or file."""
        self._nest(1)
        while i < end:
            start, keyword = i, i
            while keyword < end and self._text[keyword] in MODIFIERS:
                keyword = self._attributes(keyword + 1)
            word = self._text[keyword]
            if word in CALLABLES:
                i = self._callable(start, keyword, end, path)
            else:
                i = self._other(start, keyword, end, path)
        self._nest(-1)

    def _other(self, start: int, keyword: int, end: int, path: str) -> int:
        """A container, a type, a constant, or anything else up to the next declaration."""
        text, i = self._text, min(keyword + 1, end)
        name = next((t for t in text[i : i + 12] if is_word(t)), "")
        while i < end and not (text[i] in DECLARATIONS and text[i - 1] != "."):
            if text[i] == "{" and text[i + 1] != ":":
                holds = text[keyword] in CONTAINERS or text[i + 1] in DECLARATIONS
                close = self.partner[i]
                if holds:
                    self._keep(start, i + 1)
                    self.declarations(i + 1, close, f"{path}{name}.")
                    start = close
                i = close
            elif text[i] in ("(", "["):
                i = self.partner[i]
            i += 1
        self._keep(start, i)
        return i

    def _callable(self, start: int, keyword: int, end: int, path: str) -> int:
        kind = " ".join(self._text[start : keyword + 1])
        at = self._attributes(keyword + 1)
        if self._text[keyword] in ("function", "predicate") and self._text[at] == "method":
            kind, at = f"{kind} method", self._attributes(at + 1)
        name = path + (self._text[at] if is_word(self._text[at]) else self._text[keyword])
        body = self._body_of(at, end)
        stop = self.partner[body] + 1 if body < end and self._text[body] == "{" else body
        if self._is_new(name, kind):
            self._new_member(kind, start, at, body, stop, end)
            return stop
        self.reading.members[name] = Member(name, kind, set(self._text[start:stop]))
        self._enter(name, kind)
        self._header(start, at, body)
        if stop == body:
            self._missing(self.tokens[min(body, len(self.tokens) - 1)].line)
        elif self._is_function(kind):
            self._keep(body, stop)
        else:
            self._keep(body, body + 1)
            self.statements(body + 1, stop - 1)
            self._keep(stop - 1, stop)
        self._known, self._fresh, self._ghost = None, set(), False
        return stop

    def _enter(self, name: str, kind: str) -> None:
        self._known = self._old[name].words if self._old is not None and name in self._old else None
        self._ghost = not LEMMAS.isdisjoint(kind.split()) or kind == "ghost method"

    def _is_new(self, name: str, kind: str) -> bool:
        """Whether a hint may declare this: its name is nowhere in the original, and it is not compiled."""
        if self._old is None or name in self._old or name.rpartition(".")[2] in self._old_words:
            return False
        words = set(kind.split())
        return bool(words & (LEMMAS | {"function", "predicate", "copredicate"})) and "method" not in words

    @staticmethod
    def _is_function(kind: str) -> bool:
        return not {"function", "predicate", "copredicate"}.isdisjoint(kind.split())

    def _new_member(self, kind: str, start: int, at: int, body: int, stop: int, end: int) -> None:
        self._hint("declaration", start, stop)
        if stop == body:
            self._refuse("no body", start, stop)
        elif not self._is_function(kind):
            self._proof(body + 1, stop - 1)

    def _body_of(self, at: int, end: int) -> int:
        """The index of the body's `{`, or where a declaration without body ends."""
        text, i = self._text, min(at + 1, end)
        if text[at] == "(":
            i = at
        while i < end and not (text[i] in DECLARATIONS and text[i - 1] != "."):
            if text[i] in CLAUSE_WORDS and text[i - 1] != ".":
                i = self._clause(i, end)
            elif text[i] == "{" and text[i + 1] != ":":
                return i
            else:
                i = self.partner[i] + 1 if text[i] in ("(", "[", "{") else i + 1
        return i

    def _header(self, start: int, at: int, body: int) -> None:
        """Keeps a signature and its specification; `decreases` is a hint."""
        i = kept = start
        text = self._text
        while i < body:
            if text[i] in CLAUSE_WORDS and text[i - 1] != "." and i > at:
                stop = self._clause(i, body)
                if text[i] == "decreases" and text[i + 1] != "*":
                    self._keep(kept, i)
                    self._hint("decreases", i, stop)
                    kept = stop
                i = stop
            else:
                i = self.partner[i] + 1 if text[i] in ("(", "[", "{") else i + 1
        self._keep(kept, body)
