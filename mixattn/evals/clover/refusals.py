"""What a method may not hold: proofs that prove nothing, and code that reaches outside or fakes output."""

from mixattn.evals.dafny.grammar import ATTRIBUTES
from mixattn.evals.dafny.lexer import directives, lex

_UNPROVED = {"assume", "axiom", "free", "include", "import", "expect"}
_UNSAFE = {"extern", "print", "Main", "dllimport", "compile", "handle"}


def unproved(text: str) -> str:
    """Why a verified program would prove nothing; empty if nothing was found.

    Raises:
      ValueError: the text cannot be split into tokens.
    """
    found = [token.text for token in lex(text)]
    for i, (word, following) in enumerate(zip(found, [*found[1:], ""])):
        if word in _UNPROVED and found[i - 1] != ".":
            return f"`{word}` is not allowed"
        if word == "decreases" and following == "*":
            return "`decreases *` is not allowed"
        if word == "{" and following == ":" and found[i + 2] not in ATTRIBUTES:
            return f"the attribute {found[i + 2]!r} is not allowed"
        if word == "@" and (i == 0 or found[i - 1] not in ("old", "unchanged", "allocated", "fresh")):
            return f"the attribute {following!r} is not allowed"
    seen = directives(text)
    return f"line {seen[0][0]}: {seen[0][1][:40]!r} is not allowed" if seen else ""


def unsafe(code: str) -> str:
    """Why code is not run, on top of `unproved`; empty if it may run. Only the tests may print.

    Raises:
      ValueError: the text cannot be split into tokens.
    """
    words = {token.text for token in lex(code)} & _UNSAFE
    return unproved(code) or (f"`{min(words)}` is not allowed in code that is run" if words else "")
