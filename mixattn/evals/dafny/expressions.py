"""Finds where an expression ends, without parsing it: what closes it, and whether a brace belongs to it.

The one question is whether an operand has just ended. If so, `{` opens the body of a loop or method, and a
word begins something new; if not, `{` is a set and the word an operand.
"""

from functools import lru_cache

from mixattn.evals.dafny.lexer import DafnyTextError, Token

CLAUSES = frozenset({"requires", "ensures", "reads", "modifies", "decreases", "invariant", "yield", "free"})
_WORD_OPERATORS = frozenset({"in", "is", "as", "then", "else", "case"})
_PREFIXES = frozenset({"if", "match", "var", "ghost", "by", "forall", "exists", "set", "iset", "map"}) | {
    *("imap", "multiset", "assert", "assume", "calc", "reveal")
}
_BINDERS = frozenset({"forall", "exists", "set", "iset", "map", "imap"})
_STATEMENTS = frozenset({"assert", "assume", "calc", "reveal", "expect"})


@lru_cache(maxsize=4096)
def is_word(text: str) -> bool:
    """Whether a token is an identifier or keyword."""
    return text[:1].isalpha() or (
        text[:1] in ("_", "?", "'") and len(text) > 1 and not (text[0] == "'" and text[-1] == "'")
    )


@lru_cache(maxsize=4096)
def ends_operand(text: str) -> bool:
    """Whether an operand may end with this token; `|` is decided by the scan."""
    if is_word(text):
        return text not in _WORD_OPERATORS and text not in _PREFIXES
    return text[0].isdigit() or text[0] in "\"'@)]}" or text == "_"


class Scan:
    """Walks over one expression at a time. `partner` is that of `lexer.partners`."""

    def __init__(self, tokens: list[Token], partner: list[int]):
        self._tokens, self._partner = tokens, partner

    def end(self, start: int, *, strict: bool = False) -> int:
        """The index of the first token behind the expression that begins at `start`.

        Args:
          strict: refuse what is read in two ways: a statement inside the expression, `{` behind `>`.

        Raises:
          DafnyTextError: `strict` found such a place.
        """
        tokens, partner = self._tokens, self._partner
        i, ended, lets, bars, binders, matches = start, False, 0, 0, 0, 0
        while i < len(tokens):
            text = tokens[i][0]
            if text == ";":
                if not lets:
                    return i
                lets, ended = lets - 1, False
            elif text == "{":
                attribute = tokens[i + 1][0] == ":"
                if not attribute and ended:
                    if not (matches and tokens[i + 1][0] == "case"):
                        return i
                    matches -= 1
                if strict and i > start and tokens[i - 1][0] == ">":
                    raise DafnyTextError(tokens[i].line, "'{' behind '>' can be read in two ways")
                ended = ended if attribute else True
                i = partner[i]
            elif text in "([":
                i, ended = partner[i], True
            elif text in ")]}":
                return i
            elif text == "|":
                if binders and ended:
                    binders, ended = binders - 1, False
                elif ended and bars:
                    bars -= 1
                else:
                    bars, ended = bars + (not ended), False
            elif text == "::":
                binders, ended = max(binders - 1, 0), False
            elif is_word(text):
                before = tokens[i - 1][0] if i > start else ""
                if before in (".", "`", "@"):  # a member, or the label of old@L
                    ended = True
                elif ended and (text not in _WORD_OPERATORS or (text == "case" and not matches)):
                    return i
                else:
                    if strict and i > start and text in _STATEMENTS:
                        raise DafnyTextError(tokens[i].line, f"{text!r} inside another hint; use parentheses")
                    lets += text == "var"
                    matches += text == "match"
                    binders += text in _BINDERS and self._binds(i, text)
                    ended = ends_operand(text)
            else:
                star = text == "*" and i == start
                ended = star or ends_operand(text)
            i += 1
        return i

    def statement_end(self, start: int) -> int:
        """The index of the `;` that ends the statement at `start`; a let inside has one of its own.

        Raises:
          DafnyTextError: its block ends first.
        """
        tokens, i, lets = self._tokens, start, 0
        while i < len(tokens):
            text = tokens[i][0]
            if text == ";":
                if not lets:
                    return i
                lets -= 1
            elif text in "([{":
                i = self._partner[i]
            elif text in ")]}":
                break
            elif text == "var" and i > start and tokens[i - 1][0] != "ghost":
                lets += 1
            i += 1
        raise DafnyTextError(tokens[start].line, f"the statement at {tokens[start].text!r} has no ';'")

    def _binds(self, i: int, text: str) -> bool:
        """Whether this `set` or `map` is a comprehension, not a type or a display."""
        following = self._tokens[i + 1][0] if i + 1 < len(self._tokens) else ""
        return text in ("forall", "exists") or is_word(following)
