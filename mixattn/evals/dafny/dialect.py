"""Rewrites programs of Dafny 4 for Dafny 2.3, where the two spell one thing differently.

    level 0    as it is
    level 1    `for` becomes `while`; `ghost function` becomes `function`; and the like
    level 2    and a `function` that is not ghost becomes a `function method`, if a method's code uses it
    level 3    and so do all of them

Which level a program needs is found by trying: `level_for`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from mixattn.evals.dafny.expressions import Scan, is_word
from mixattn.evals.dafny.lexer import DafnyTextError, Token, lex, partners
from mixattn.evals.dafny.protocol import Verify, settled

LEVELS = (0, 1, 2, 3)
_FUNCTIONS = ("function", "predicate")
_OLD_NAMES = {
    ("least", "predicate"): "inductive predicate",
    ("least", "lemma"): "inductive lemma",
    ("greatest", "predicate"): "copredicate",
    ("greatest", "lemma"): "colemma",
}


class Edit(NamedTuple):
    """Text [start, end) becomes `text`."""

    start: int
    end: int
    text: str


def rewrite(program: str, level: int) -> str:
    """`program` in Dafny 2.3's words; unchanged if it cannot be read.

    The rewriting of hints and code is the same whatever else stands in the program, so that a task and its
    solutions can be rewritten one by one.
    """
    if level == 0:
        return program
    try:
        tokens = lex(program)
        edits = [*_declarations(tokens, level), *_loops(program, tokens)]
    except DafnyTextError:
        return program
    return _edited(program, sorted(edits))


def _edited(program: str, edits: list[Edit]) -> str:
    """`program` with its edits, in order of their places, none inside another."""
    parts, at = [], 0
    for edit in edits:
        parts += [program[at : edit.start], edit.text]
        at = edit.end
    return "".join([*parts, program[at:]])


def level_for(program: str, verify: Verify) -> int:
    """The first level at which the verifier can read the program; 0 if there is none."""
    tried = set()
    for level in LEVELS:
        rewritten = rewrite(program, level)
        if rewritten in tried:
            continue
        tried.add(rewritten)
        if settled(rewritten, verify).verdict not in ("parse", "resolve", "crash"):
            return level
    return 0


def _declarations(tokens: list[Token], level: int) -> Iterator[Edit]:
    text = [token[0] for token in tokens] + ["", ""]
    used = _used_in_code(text) if level == 2 else set()
    for i, token in enumerate(tokens):
        following = text[i + 1]
        if (token[0], following) in _OLD_NAMES:
            yield Edit(token.start, tokens[i + 1].end, _OLD_NAMES[token[0], following])
        elif token[0] in ("ghost", "opaque") and following in _FUNCTIONS:
            yield Edit(token.start, token.end, "")
        elif (
            token[0] in _FUNCTIONS and following != "method" and text[i - 1] not in ("least", "greatest", ".")
        ):
            before = {text[i - 1], text[i - 2] if i > 1 else ""}
            compiled = "ghost" not in before and (level == 3 or _name(text, i + 1) in used)
            words = [" method"] * (compiled and level > 1) + [" {:opaque}"] * ("opaque" in before)
            yield Edit(token.end, token.end, "".join(words))


def _name(text: list[str], i: int) -> str:
    while text[i] == "{":
        while text[i] and text[i] != "}":
            i += 1
        i += 1
    return text[i]


def _used_in_code(text: list[str]) -> set[str]:
    """Names that occur in a method's body, and those that the bodies of such functions use in turn."""
    bodies: dict[str, set[str]] = {}
    used: set[str] = set()
    words: set[str] = set()
    for i, word in enumerate(text):
        if word in _FUNCTIONS and text[i - 1] != ".":
            words = bodies.setdefault(_name(text, i + 1), set())
        elif word == "lemma":
            words = set()
        elif word in ("method", "constructor") and text[i - 1] not in _FUNCTIONS:
            words = used
        elif text[i + 1 : i + 2] and text[i + 1] in ("(", "<") and is_word(word or " "):
            words.add(word)
    todo = list(used)
    while todo:
        new = bodies.pop(todo.pop(), set()) - used
        used |= new
        todo += new
    return used


def _loops(program: str, tokens: list[Token]) -> Iterator[Edit]:
    """`for i := a to b ... { body }` as a block with a `while`."""
    partner = partners(tokens)
    scan = Scan(tokens, partner)
    seen: Counter[str] = Counter()  # by variable: hints must not change the names of bounds
    for i, token in enumerate(tokens[:-3]):
        if token[0] == "for" and is_word(tokens[i + 1][0]):
            name = tokens[i + 1][0]
            seen[name] += 1
            yield from _loop(program, tokens, partner, scan, i, f"{name}_{seen[name]}")


def _loop(
    program: str, tokens: list[Token], partner: list[int], scan: Scan, i: int, label: str
) -> Iterator[Edit]:
    name, assign = tokens[i + 1][0], i + 2
    while assign < len(tokens) and tokens[assign][0] != ":=" and assign < i + 20:
        assign += 1
    middle = _direction(tokens, partner, assign)
    stop = scan.end(middle + 1)
    body = _body(tokens, partner, stop)
    if body is None:
        return
    # Up to the last token, not to the next one: a comment between them would swallow what follows.
    kind = program[tokens[i + 1].end : tokens[assign - 1].end].strip() or ": int"
    first = program[tokens[assign].end : tokens[middle - 1].end].strip()
    last = program[tokens[middle].end : tokens[stop - 1].end].strip()
    up, low, high = tokens[middle][0] == "to", f"low_{label}", f"high_{label}"
    left = f"{high} - {name}" if up else f"{name} - {low}"
    if last == "*":
        head = f"var {name} {kind} := {first}; while true "
    else:
        bounds = (first, last) if up else (last, first)
        head = (
            f"var {low}: int := {bounds[0]}; var {high}: int := {bounds[1]}; "
            f"var {name} {kind} := {low if up else high}; "
            f"while {name} {'<' if up else '>'} {high if up else low} "
            f"invariant {low} <= {name} <= {high} decreases {left} "
        )
    step = f" {name} := {name} {'+' if up else '-'} 1; "
    close = partner[body]
    yield Edit(tokens[i].start, tokens[stop].start, "{ " + head)
    where = tokens[close].start if up else tokens[body].end
    yield Edit(where, where, step)
    yield Edit(tokens[close].end, tokens[close].end, " }")


def _direction(tokens: list[Token], partner: list[int], assign: int) -> int:
    """The index of `to` or `downto`.

    Raises:
      DafnyTextError: there is none.
    """
    i = assign
    while i < len(tokens) and tokens[i][0] not in ("to", "downto", ";"):
        i = partner[i] + 1 if tokens[i][0] in ("(", "[", "{") else i + 1
    if i >= len(tokens) or tokens[i][0] == ";":
        raise DafnyTextError(tokens[min(assign, len(tokens) - 1)].line, "a for without 'to' or 'downto'")
    return i


def _body(tokens: list[Token], partner: list[int], i: int) -> int | None:
    """The index of the loop body's brace behind its clauses."""
    scan = Scan(tokens, partner)
    while i < len(tokens) and tokens[i][0] in ("invariant", "decreases", "modifies"):
        i = scan.end(i + 1)
        while i < len(tokens) and tokens[i][0] in (",", ";"):
            i = scan.end(i + 1) if tokens[i][0] == "," else i + 1
    return i if i < len(tokens) and tokens[i][0] == "{" else None
