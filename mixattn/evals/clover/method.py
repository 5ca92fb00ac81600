"""Splits a Dafny program into a method's signature, annotation and body, on tokens."""

from dataclasses import dataclass

from mixattn.evals.dafny.expressions import Scan
from mixattn.evals.dafny.lexer import Token, lex, partners

CLAUSES = ("requires", "ensures", "modifies", "reads", "decreases")


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input or output of a method."""

    name: str
    type: str
    ghost: bool = False


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause of an annotation; `text` is its expression, single-spaced and without comments."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


@dataclass(frozen=True, slots=True)
class Method:
    """A method, taken apart.

    Attributes:
      signature: from `method` to the results, as written.
      clauses: the annotation: requires, ensures, modifies and reads, in order.
      decreases: termination hints of the whole method; they belong to the code.
      body: with its braces; empty if the method has none.
      others: the program without this method.
    """

    name: str
    signature: str
    type_parameters: str
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    clauses: tuple[Clause, ...]
    decreases: tuple[Clause, ...]
    body: str
    others: str

    @property
    def code(self) -> str:
        """Termination hints and body."""
        return "".join(f"  {clause}\n" for clause in self.decreases) + self.body

    def same_signature(self, other: "Method") -> bool:
        return _texts(self.signature) == _texts(other.signature)


def annotation_text(clauses: tuple[Clause, ...]) -> str:
    """The clauses of an annotation, one a line."""
    return "\n".join(f"  {clause}" for clause in clauses)


def program(signature: str, clauses: tuple[Clause, ...], code: str, others: str = "") -> str:
    """A whole program from its parts."""
    return "\n".join(filter(None, [others.strip(), signature, annotation_text(clauses), code])) + "\n"


def read_method(text: str, name: str = "") -> Method:
    """Takes the only method of a program apart, or the one called `name`.

    Raises:
      ValueError: the text has no such method, or more than one, or is no Dafny.
    """
    found = lex(text)
    ends = partners(found)
    starts = [i for i in _at_top(ends) if found[i].text == "method"]
    if name:
        starts = [i for i in starts if _name(found, ends, i) == name]
    if len(starts) != 1:
        what = f"method {name!r}" if name else "method at the top level"
        raise ValueError(f"the program has {len(starts)} declarations of a {what}; exactly one is needed")
    return _Reader(text, found, ends, starts[0]).method()


def _at_top(ends: list[int]) -> list[int]:
    """Indices of the tokens outside all brackets."""
    at, i = [], 0
    while i < len(ends):
        at.append(i)
        i = max(ends[i], i) + 1
    return at


def _name(found: list[Token], ends: list[int], i: int) -> str:
    i += 1
    while i < len(found) and _is_attribute(found, i):
        i = ends[i] + 1
    return found[i].text if i < len(found) else ""


def _is_attribute(found: list[Token], i: int) -> bool:
    return found[i].text == "{" and i + 1 < len(found) and found[i + 1].text == ":"


def _texts(text: str) -> list[str]:
    return [token.text for token in lex(text)]


class _Reader:
    """One pass over a method's tokens; `at` is the next one."""

    def __init__(self, text: str, found: list[Token], ends: list[int], start: int):
        self._text, self._found, self._ends, self._start, self._at = text, found, ends, start, start
        self._scan = Scan(found, ends)

    def method(self) -> Method:
        name = _name(self._found, self._ends, self._start)
        while self._word() not in ("(", "<"):
            self._skip()
        generics = self._between() if self._word() == "<" else ""
        inputs = self._parameters()
        outputs: tuple[Parameter, ...] = ()
        if self._word() == "returns":
            self._at += 1
            outputs = self._parameters()
        signature = self._text[self._found[self._start].start : self._found[self._at - 1].end]
        clauses = self._clauses()
        body = self._body()
        end = self._found[self._at - 1].end
        others = self._text[: self._found[self._start].start] + self._text[end:]
        return Method(
            name,
            signature,
            generics,
            inputs,
            outputs,
            tuple(c for c in clauses if c.kind != "decreases"),
            tuple(c for c in clauses if c.kind == "decreases"),
            body,
            others if lex(others) else "",
        )

    def _word(self) -> str:
        if self._at >= len(self._found):
            return ""
        return self._found[self._at].text

    def _skip(self) -> None:
        if self._at >= len(self._found):
            raise ValueError("a method ends before its parameters")
        self._at = max(self._ends[self._at], self._at) + 1

    def _between(self) -> str:
        """The type parameters, with their angle brackets."""
        start, depth = self._at, 0
        while self._at < len(self._found):
            depth += (self._word() == "<") - (self._word() == ">")
            self._skip()
            if depth == 0:
                return _spaced(self._found[start : self._at])
        raise ValueError("the type parameters of a method do not end")

    def _parameters(self) -> tuple[Parameter, ...]:
        if self._word() != "(":
            raise ValueError(f"parameters in brackets are expected, not {self._word()!r}")
        end = self._ends[self._at]
        inside, self._at = self._found[self._at + 1 : end], end + 1
        return tuple(_parameter(part) for part in _split(inside))

    def _clauses(self) -> list[Clause]:
        clauses = []
        while self._word() in CLAUSES or self._word() == ";":
            kind = self._word()
            self._at += 1
            if kind != ";":
                clauses.append(Clause(kind, self._expression()))
        return clauses

    def _expression(self) -> str:
        """One clause's expression; its attributes are dropped."""
        while self._at < len(self._found) and _is_attribute(self._found, self._at):
            self._at = self._ends[self._at] + 1
        start, self._at = self._at, self._scan.end(self._at)
        if start == self._at or self._found[start].text in CLAUSES:
            raise ValueError("a clause of the annotation has no expression")
        return _spaced(self._found[start : self._at])

    def _body(self) -> str:
        if self._word() != "{":
            return ""
        start = self._at
        self._at = self._ends[self._at] + 1
        return self._text[self._found[start].start : self._found[self._at - 1].end]


def _split(inside: list[Token]) -> list[list[Token]]:
    """Parts between commas outside brackets; angle brackets count, for these are types."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in inside:
        depth += (token.text in ("(", "[", "{", "<")) - (token.text in (")", "]", "}", ">"))
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def _parameter(part: list[Token]) -> Parameter:
    colon = next((i for i, token in enumerate(part) if token.text == ":"), 0)
    if colon == 0 or colon + 1 == len(part):
        raise ValueError(f"a parameter needs a name and a type: {_spaced(part)!r}")
    return Parameter(part[colon - 1].text, _spaced(part[colon + 1 :]), part[0].text == "ghost")


def _spaced(part: list[Token]) -> str:
    """Tokens as text: a blank where the source had space or a comment between them."""
    text = ""
    for before, token in zip([None, *part], part):
        gap = before is not None and token.start > before.end
        text += (" " if gap else "") + token.text
    return text
