"""Tells hints from code: the code projection of a program, the spans of its hints, and what hints may not hold.

A hint is what can be added to a program without a change of what it does or promises: loop clauses, assertions,
calculations, lemma calls, ghost variables with names of their own, and new lemmas and pure functions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mixattn.evals.dafny.expressions import Scan, is_word
from mixattn.evals.dafny.grammar import ATTRIBUTES, CALLABLES, CONTAINERS, DECLARATIONS, MODIFIERS
from mixattn.evals.dafny.lexer import DafnyTextError, Token, directives, lex, partners

NO_BODY = "<no body>"
MAX_NESTING = 100
_LEMMAS = frozenset({"lemma", "colemma", "comethod"})


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


def read(program: str, original: "Reading | None" = None) -> Reading:
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
    reading.cheats += _forbidden(reading)
    return reading


class _Reader:
    def __init__(self, tokens: list[Token], partner: list[int], original: Reading | None):
        self.tokens, self.partner = tokens, partner
        self.reading = Reading(tokens)
        self._text = [token[0] for token in tokens] + [""]
        self._scan = Scan(tokens, partner)
        self._old: Mapping[str, Member] | None = original.members if original else None
        self._old_words = {t[0] for t in original.tokens} if original else set()
        self._lemmas, self._methods = _declared(self._text)
        self._fresh: set[str] = set()  # ghost locals of the member at hand that the original lacks
        self._known: set[str] | None = None  # words of the member at hand in the original
        self._ghost = False  # inside a lemma
        self._depth = 0
        self._any_code = False  # whether the cases read last hold code

    # Output

    def _keep(self, start: int, end: int) -> None:
        """Keeps code, except for hints inside its expressions and attributes that are hints."""
        text, i, kept = self._text, start, start
        code, tokens = self.reading.code, self.tokens
        while i < end:
            word = text[i]
            stop = 0
            if word == "{" and text[i + 1] == ":" and text[i + 2] in ATTRIBUTES:
                stop, kind = self.partner[i] + 1, "attribute"
            elif word in ("assert", "calc", "reveal") and text[i - 1] not in (".", "`"):
                stop, kind = self._hint_end(i), word
            elif text[i + 1] == "(" and word in self._lemmas and self._is_call(i, end):
                stop, kind = self.partner[i + 1] + 2, "call"
            if stop:
                code += tokens[kept:i]
                self._hint(kind, i, stop)
                i = kept = stop
            else:
                i += 1
        code += tokens[kept:end]

    def _hint(self, kind: str, start: int, end: int) -> None:
        self.reading.spans.append(Span(kind, start, end))
        if kind != "block":
            self.reading.inner.append(Span(kind, start, end))

    def _missing(self, line: int) -> None:
        self.reading.code.append(Token(NO_BODY, 0, 0, line))

    def _refuse(self, rule: str, i: int, end: int) -> None:
        quoted = " ".join(self._text[i : min(end, i + 12)])
        self.reading.cheats.append(Cheat(rule, self.tokens[i].line, quoted[:80]))

    # Declarations

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
        self._ghost = not _LEMMAS.isdisjoint(kind.split()) or kind == "ghost method"

    def _is_new(self, name: str, kind: str) -> bool:
        """Whether hints may add this declaration: nothing in the original has its name, and it is not compiled."""
        if self._old is None or name in self._old or name.rpartition(".")[2] in self._old_words:
            return False
        words = set(kind.split())
        return bool(words & (_LEMMAS | {"function", "predicate", "copredicate"})) and "method" not in words

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
        text, i = self._text, at + 1
        if text[at] == "(":
            i = at
        while i < end and not (text[i] in DECLARATIONS and text[i - 1] != "."):
            if text[i] in _CLAUSE_WORDS and text[i - 1] != ".":
                i = self._clause(i, end)
            elif text[i] == "{" and text[i + 1] != ":":
                return i
            else:
                i = self.partner[i] + 1 if text[i] in ("(", "[", "{") else i + 1
        return i

    def _clause(self, i: int, end: int) -> int:
        """The end of a clause with its optional semicolon."""
        if self._text[i] in ("yield", "free"):
            return i + 1
        start = stop = self._named(i + 1)
        while stop < end:
            stop = self._scan.end(stop, strict=self._text[i] in ("invariant", "decreases"))
            if self._text[stop] != ",":
                break
            stop += 1
        return stop + 1 if stop < end and self._text[stop] == ";" else stop

    def _header(self, start: int, at: int, body: int) -> None:
        """Keeps a signature and its specification; `decreases` is a hint."""
        i = kept = start
        text = self._text
        while i < body:
            if text[i] in _CLAUSE_WORDS and text[i - 1] != "." and i > at:
                stop = self._clause(i, body)
                if text[i] == "decreases" and text[i + 1] != "*":
                    self._keep(kept, i)
                    self._hint("decreases", i, stop)
                    kept = stop
                i = stop
            else:
                i = self.partner[i] + 1 if text[i] in ("(", "[", "{") else i + 1
        self._keep(kept, body)

    def _named(self, i: int) -> int:
        """Behind the attributes and the name of an assertion or clause."""
        i = self._attributes(i)
        return i + 2 if self._text[i + 1] == ":" and is_word(self._text[i]) else i

    def _attributes(self, i: int) -> int:
        while self._text[i] == "{" and self._text[i + 1] == ":":
            i = self.partner[i] + 1
        return i

    # Statements

    def statements(self, i: int, end: int) -> None:
        """Reads the statements of a block, up to its closing brace."""
        self._nest(1)
        while i < end:
            i = self._statement(i, end)
        self._nest(-1)

    def _statement(self, i: int, end: int) -> int:
        word = self._text[i]
        if word in ("assert", "calc", "reveal"):
            stop = self._hint_end(i)
            self._hint(word, i, stop)
            return stop
        if word == "forall":
            return self._forall(i, end)
        if word in ("while", "for"):
            return self._loop(i, end)
        if word == "if":
            return self._if(i, end)
        if word == "match":
            return self._match(i, end)
        if word == "{":
            return self._erasable(i, i, end)
        if word == "label" and self._text[i + 2] == ":":
            self._new_or_kept("label", {self._text[i + 1]}, i, i + 3)
            return i + 3
        if word == "case" or word == "}":
            raise DafnyTextError(self.tokens[i].line, f"{word!r} where a statement should be")
        return self._simple(i)

    def _simple(self, i: int) -> int:
        """An assignment, a declaration of variables, a call, or one of the short statements."""
        stop = self._scan.statement_end(i) + 1
        text = self._text
        ghost = text[i] == "ghost" and text[i + 1] == "var"
        if ghost or (self._ghost and text[i] == "var"):
            names = self._declared_names(i + 1 + ghost, stop)
            self._new_or_kept("ghost", names, i, stop)
        elif self._is_lemma_call(i, stop):
            self._hint("call", i, stop)
        elif (names := self._assigned(i, stop)) and names <= self._fresh:
            self._hint("ghost", i, stop)
        else:
            self._keep(i, stop)
        return stop

    def _new_or_kept(self, kind: str, names: set[str], i: int, stop: int) -> None:
        """A hint if the original's member has none of these names, else code."""
        if self._known is not None and names and not names & self._known:
            self._fresh |= names
            self._hint(kind, i, stop)
        else:
            self._keep(i, stop)

    def _declared_names(self, i: int, stop: int) -> set[str]:
        """The names left of `:=`, `:|` or `;` in a declaration of local variables."""
        names, expect = set(), True
        while i < stop and self._text[i] not in (":=", ":|", ":-", ";", "("):
            if self._text[i] == "{":
                i = self.partner[i]
            elif expect and is_word(self._text[i]):
                names.add(self._text[i])
                expect = False
            elif self._text[i] == ",":
                expect = True
            elif self._text[i] == "<":
                return names if self._text[i - 1] != "," else set()
            i += 1
        return set() if self._text[i] == "(" and not names else names

    def _assigned(self, i: int, stop: int) -> set[str]:
        """The variables of a plain assignment `x, y := ...`; empty for anything else."""
        names: set[str] = set()
        while i + 1 < stop and is_word(self._text[i]):
            names.add(self._text[i])
            if self._text[i + 1] in (":=", ":|"):
                return names
            if self._text[i + 1] != ",":
                return set()
            i += 2
        return set()

    def _is_lemma_call(self, i: int, stop: int) -> bool:
        """`Name(...);` or `a.b.Name<T>(...);` where only lemmas have the name."""
        text, name = self._text, ""
        while i < stop and is_word(text[i]):
            name, i = text[i], i + 1
            if text[i] == "<":
                depth = 0
                while i < stop:
                    depth += (text[i] == "<") - (text[i] == ">")
                    i += 1
                    if not depth:
                        break
            if text[i] != ".":
                break
            i += 1
        called = text[i] == "(" and self.partner[i] + 2 == stop
        return called and name in self._lemmas and name not in self._methods

    def _is_call(self, i: int, end: int) -> bool:
        """Whether a lemma is called as a statement in front of an expression: `Lemma(x); e`."""
        close = self.partner[i + 1]
        alone = self._text[i - 1] in ("{", ";", "(", "then", "else", "=>") or self._text[i - 1] == ")"
        return (
            alone and close + 1 < end and self._text[close + 1] == ";" and self._text[i] not in self._methods
        )

    def _hint_end(self, i: int) -> int:
        """The end of an assert, calc or reveal at `i`; refuses what its proof may not hold."""
        text = self._text
        if text[i] == "calc":
            return self._calc_end(i)
        if text[i] == "reveal":
            return self._scan.statement_end(i) + 1
        stop = self._scan.end(self._named(i + 1), strict=True)
        if text[stop] == "by" and text[stop + 1] == "{":
            close = self.partner[stop + 1]
            self._proof(stop + 2, close)
            return close + 1
        if text[stop] != ";":
            line = self.tokens[min(stop, len(self.tokens) - 1)].line
            raise DafnyTextError(line, f"{text[stop] or 'the end'!r} inside an assertion that has not ended")
        return stop + 1

    def _calc_end(self, i: int) -> int:
        text = self._text
        j = self._attributes(i + 1)
        while text[j] and text[j] != "{":
            j = self.partner[j] + 1 if text[j] == "[" else j + 1
        if not text[j]:
            raise DafnyTextError(self.tokens[i].line, "a calc without a body")
        close, line = self.partner[j], j + 1
        while line < close:
            line = self._scan.statement_end(line) + 1 if self._has_line(line, close) else close
            while line < close and not is_word(text[line]) and text[line] in _STEPS:
                line += 1
                if text[line] == "#" and text[line + 1] == "[":
                    line = self.partner[line + 1] + 1
            while line < close and text[line] in ("{", "calc"):
                if text[line] == "calc":
                    line = self._calc_end(line)
                else:
                    self._proof(line + 1, self.partner[line])
                    line = self.partner[line] + 1
        return close + 1

    def _has_line(self, i: int, close: int) -> bool:
        while i < close and self._text[i] != ";":
            i = self.partner[i] + 1 if self._text[i] in ("(", "[", "{") else i + 1
        return i < close

    def _proof(self, start: int, end: int) -> None:
        """Reads a block inside a hint: its statements are hints, whatever they are, but need their bodies."""
        aside = _Reader(self.tokens, self.partner, None)
        aside._lemmas, aside._methods, aside._ghost = self._lemmas, self._methods, True
        aside._depth = self._depth
        aside.statements(start, end)
        missing = [t for t in aside.reading.code if t[0] == NO_BODY]
        self.reading.cheats += [Cheat("no body", t.line, "a loop or forall without a body") for t in missing]
        self.reading.cheats += aside.reading.cheats

    def _forall(self, i: int, end: int) -> int:
        """A statement that proves for all, assigns for all, or calls for all."""
        stop, proves = self._quantified(i, end)
        if stop >= end or self._text[stop] != "{":
            if proves:
                self._hint("forall", i, stop)
                self._refuse("no body", i, stop)
            else:
                self._keep(i, stop)
            self._missing(self.tokens[i].line)
            return stop
        close = self.partner[stop]
        if proves:
            self._hint("forall", i, close + 1)
            self._proof(stop + 1, close)
            return close + 1
        return self._erasable(i, stop, end)

    def _quantified(self, i: int, end: int) -> tuple[int, bool]:
        text = self._text
        if text[i + 1] == "(" and text[self.partner[i + 1] + 1] in ("{", "ensures"):
            stop = self.partner[i + 1] + 1
        else:
            stop = self._scan.end(i)
        proves = False
        while stop < end and text[stop] in ("ensures", "free"):
            proves = True
            stop = self._clause(stop, end)
        return stop, proves

    def _loop(self, i: int, end: int) -> int:
        text, line = self._text, self.tokens[i].line
        stop = self._guard_end(i + 1, end)
        self._keep(i, stop)
        i = stop
        while i < end and text[i] in _CLAUSE_WORDS:
            stop = self._clause(i, end)
            hint = text[i] == "invariant" or (text[i] == "decreases" and text[i + 1] != "*")
            if hint:
                self._hint(text[i], i, stop)
            else:
                self._keep(i, stop)
            i = stop
        if i < end and text[i] == "{":
            close = self.partner[i]
            self._keep(i, i + 1)
            self._cases(i + 1, close) if text[i + 1] == "case" else self.statements(i + 1, close)
            self._keep(close, close + 1)
            return close + 1
        if i < end and text[i] == "case":
            return self._cases(i, end)
        self._missing(line)
        return i

    def _guard_end(self, i: int, end: int) -> int:
        """The end of a guard: in parentheses, `*`, an expression, or for's range; perhaps none."""
        i = self._attributes(i)
        if self._text[i] in _CLAUSE_WORDS or self._text[i] == "{":
            return i
        stop = self._scan.end(i)
        if self._text[stop] in ("to", "downto"):
            stop = self._scan.end(stop + 1)
        while self._text[stop] in (":=", ":|", ":"):
            stop = self._scan.end(stop + 1)
            if self._text[stop] in ("to", "downto"):
                stop = self._scan.end(stop + 1)
        return stop

    def _if(self, i: int, end: int) -> int:
        if self._text[i + 1] == "case":
            self._keep(i, i + 1)
            return self._cases(i + 1, end)
        stop = self._guard_end(i + 1, end)
        return self._erasable(i, stop, end)

    def _erasable(self, i: int, brace: int, end: int) -> int:
        """A block with what stands before it, and an if's else: a hint if only hints are in it."""
        code, spans = self.reading.code, self.reading.spans
        before, known_spans = len(code), len(spans)
        holds, at, start = False, brace, i
        while True:
            if at >= end or self._text[at] != "{":
                raise DafnyTextError(self.tokens[i].line, f"{self._text[i]!r} has no block")
            close = self.partner[at]
            self._keep(start, at + 1)
            inside = len(code)
            if self._text[at + 1] == "case":
                self._cases(at + 1, close)
                holds = True
            else:
                self.statements(at + 1, close)
            holds |= len(code) > inside
            self._keep(close, close + 1)
            at = close + 1
            if not (self._text[i] == "if" and at < end and self._text[at] == "else"):
                break
            start = at
            at = self._guard_end(at + 2, end) if self._text[at + 1] == "if" else at + 1
        if not holds:
            del code[before:]
            del spans[known_spans:]
            self._hint("block", i, at)
        return at

    def _match(self, i: int, end: int) -> int:
        stop = self._scan.end(i + 1)
        code, spans = self.reading.code, self.reading.spans
        before, known_spans = len(code), len(spans)
        self._keep(i, stop)
        if stop < end and self._text[stop] == "{":
            close = self.partner[stop]
            self._keep(stop, stop + 1)
            self._cases(stop + 1, close)
            holds = self._any_code
            self._keep(close, close + 1)
            stop = close + 1
        else:
            stop = self._cases(stop, end)
            holds = self._any_code
        if not holds:
            del code[before:]
            del spans[known_spans:]
            self._hint("block", i, stop)
        return stop

    def _cases(self, i: int, end: int) -> int:
        """`case ... => statements`, repeatedly."""
        self._nest(1)
        any_code = False
        while i < end and self._text[i] == "case":
            arrow = i
            while arrow < end and self._text[arrow] != "=>":
                arrow = self.partner[arrow] + 1 if self._text[arrow] in ("(", "[", "{") else arrow + 1
            self._keep(i, min(arrow + 1, end))
            i = arrow + 1
            inside = len(self.reading.code)
            while i < end and self._text[i] != "case":
                i = self._statement(i, end)
            any_code |= len(self.reading.code) > inside
        self._any_code = any_code
        self._nest(-1)
        return i

    def _nest(self, by: int) -> None:
        self._depth += by
        if self._depth > MAX_NESTING:
            raise DafnyTextError(0, f"blocks nest more than {MAX_NESTING} deep")


_CLAUSE_WORDS = frozenset(
    {"requires", "ensures", "reads", "modifies", "decreases", "invariant", "yield", "free"}
)
_STEPS = frozenset({"==", "!=", "<", "<=", ">", ">=", "==>", "<==", "<==>"})


def _declared(text: list[str]) -> tuple[set[str], set[str]]:
    """Names behind `lemma`, and names behind `method`."""
    lemmas, methods = set(), set()
    for i, word in enumerate(text[:-1]):
        if word in _LEMMAS or word == "method":
            j = i + 1
            while text[j] == "{":  # attributes; a lemma without a name is caught elsewhere
                while text[j] and text[j] != "}":
                    j += 1
                j += 1 if text[j] else 0
            (methods if word == "method" else lemmas).add(text[j])
    return lemmas, methods


def _forbidden(reading: Reading) -> Iterable[Cheat]:
    """What no hint may hold."""
    tokens = reading.tokens
    for span in reading.spans:
        for i in range(span.start, span.end):
            rule = _rule(tokens, i)
            if rule:
                quoted = " ".join(t[0] for t in tokens[i : min(i + 8, span.end)])
                yield Cheat(rule, tokens[i].line, quoted[:80])


_WORDS = {"assume": "assume", "expect": "expect", "include": "include", "free": "free", "...": "skeleton"}


def _rule(tokens: list[Token], i: int) -> str:
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
