"""Reads statements: which are code, which are hints, and which hints lack the body that would prove them."""

import copy

from mixattn.evals.dafny.expressions import Scan, is_word
from mixattn.evals.dafny.grammar import ATTRIBUTES
from mixattn.evals.dafny.lexer import DafnyTextError, Token
from mixattn.evals.dafny.reading import NO_BODY, Cheat, Reading, Span

MAX_NESTING = 100
LEMMAS = frozenset({"lemma", "colemma", "comethod"})
CLAUSE_WORDS = frozenset(
    {"requires", "ensures", "reads", "modifies", "decreases", "invariant", "yield", "free"}
)
_STEPS = frozenset({"==", "!=", "<", "<=", ">", ">=", "==>", "<==", "<==>"})


class Statements:
    """Reads the statements of `tokens` into `reading`. `partner` is that of `lexer.partners`."""

    def __init__(self, tokens: list[Token], partner: list[int]):
        self.tokens, self.partner = tokens, partner
        self.reading = Reading(tokens)
        self._text = [token[0] for token in tokens] + [""] * 4  # what looks ahead finds an end
        self._scan = Scan(tokens, partner)
        self._lemmas, self._methods = declared(self._text)
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

    def _clause(self, i: int, end: int) -> int:
        """The end of a clause with its optional semicolon."""
        if self._text[i] in ("yield", "free"):
            return i + 1
        stop = self._named(i + 1)
        while stop < end:
            stop = self._scan.end(stop, strict=self._text[i] in ("invariant", "decreases"))
            if self._text[stop] != ",":
                break
            stop += 1
        return stop + 1 if stop < end and self._text[stop] == ";" else stop

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
        aside = copy.copy(self)  # shares what was computed once for the whole text
        aside.reading, aside._ghost, aside._known, aside._fresh = Reading(self.tokens), True, None, set()
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
        while i < end and text[i] in CLAUSE_WORDS:
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
        if self._text[i] in CLAUSE_WORDS or self._text[i] == "{":
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
            if self._text[at + 1] == "case":
                self._cases(at + 1, close)
                holds |= self._any_code
            else:
                inside = len(code)
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


def declared(text: list[str]) -> tuple[set[str], set[str]]:
    """Names behind `lemma`, and names behind `method`."""
    lemmas: set[str] = set()
    methods: set[str] = set()
    for i, word in enumerate(text[:-1]):
        if word in LEMMAS or word == "method":
            j = i + 1
            while text[j] == "{":  # attributes; a lemma without a name is caught elsewhere
                while text[j] and text[j] != "}":
                    j += 1
                j += 1 if text[j] else 0
            (methods if word == "method" else lemmas).add(text[j])
    return lemmas, methods
