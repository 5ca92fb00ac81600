"""No text makes lexer, checker, strip or rewriting raise or hang: mutated programs, token soups, noise."""

import random
import time

import pytest

from mixattn.evals.dafny import strict
from mixattn.evals.dafny.dialect import LEVELS, rewrite
from mixattn.evals.dafny.lexer import DafnyTextError, lex
from mixattn.evals.dafny.strip import strip
from mixattn.evals.dafnybench.cheats import CHEATS, HONEST
from mixattn.evals.dafnybench.checking import Task
from mixattn.evals.dafnybench.tasks import own

TASKS = own()
PROGRAMS = [task.original for task in TASKS] + list(CHEATS.values()) + list(HONEST.values())
WORDS = sorted({token.text for task in TASKS for token in lex(task.original)})
AWKWARD = [
    "",
    "/*",
    "*/",
    "//",
    '"',
    "'",
    '@"',
    "\\",
    "{:",
    "}",
    "{",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    "|",
    ";",
    ":",
]
AWKWARD += [
    "\r",
    "\n",
    "\0",
    "\ufeff",
    "\x85",
    "\u2028",
    "\ud800",
    "#if X\n",
    "assume",
    "by",
    "case",
    "=>",
    "::",
]
MAX_SECONDS = (
    2.0  # a text of a few thousand characters takes some milliseconds; a loaded machine ten times that
)


def mutated(dice: random.Random, program: str) -> str:
    """A program with a piece cut, doubled, moved or replaced by something awkward."""
    for _ in range(dice.randint(1, 4)):
        a, b = sorted(dice.randrange(len(program) + 1) for _ in range(2))
        b = min(b, a + 40)
        piece = dice.choice([*AWKWARD, program[a:b] * 2, dice.choice(WORDS)])
        program = program[:a] + piece + program[b:]
    return program


def soup(dice: random.Random) -> str:
    """Tokens of programs in any order."""
    return dice.choice(["", " ", "\n"]).join(dice.choice(WORDS) for _ in range(dice.randrange(120)))


def noise(dice: random.Random) -> str:
    """Any characters at all."""
    return "".join(chr(dice.choice([dice.randrange(32, 127), dice.randrange(0x11000)])) for _ in range(200))


def fuzzed(dice: random.Random) -> str:
    kind = dice.random()
    return mutated(dice, dice.choice(PROGRAMS)) if kind < 0.7 else soup(dice) if kind < 0.95 else noise(dice)


def digest(task: Task, program: str) -> None:
    """Everything that reads a text without asking the verifier."""
    strict.cheats(task.original, task.stripped, program)
    rewrite(program, 2)
    for reads in (lex, strip):
        try:
            reads(program)
        except DafnyTextError:
            continue


@pytest.mark.parametrize("n", [100, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_text_makes_lexer_or_checker_raise_or_hang(n):
    dice = random.Random(18)
    slowest_s = 0.0
    for _ in range(n):
        program = fuzzed(dice)
        start_s = time.process_time()
        digest(dice.choice(TASKS), program)
        slowest_s = max(slowest_s, time.process_time() - start_s)
    assert slowest_s < MAX_SECONDS


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "{" * 10_000,
        "{:" * 10_000,
        "/*" * 10_000,
        "<" * 10_000,
        "assert (" * 10_000,
        "if " * 10_000,
        "method M() " + "{ if true " * 10_000,
        "method M() { " + "assert true by { " * 10_000,
        "lemma L() { calc { " * 5_000,
        "for i := 0 to 1 " * 5_000,
        "while true invariant " * 5_000,
        "match x case " * 5_000,
        "a." * 20_000,
        "forall x | " * 5_000,
        "|" * 20_000,
        "var x := " * 5_000,
        "'" * 20_000,
        '@"' * 20_000,
        "//" * 20_000,
        "\r" * 50_000,
        "*/" * 20_000,
        "predicate",  # a declaration that ends at once
        "method M<" + "A," * 20_000,
        "method M() { " + "assert true by { assert true; } " * 4_000 + "}",
        "method M() { " + "calc { 1; { assert true; } 1; } " * 3_000 + "}",
        "method M() { " + "for i := 0 to 3 { } " * 4_000 + "}",
        "".join(f"function F{i}(): int {{ F{i + 1}() }} " for i in range(3_000)) + "method M() { F0(); }",
    ],
    ids=lambda text: repr(text[:16]),
)
def test_long_and_deep_texts_take_no_more_than_seconds(text):
    start_s = time.process_time()
    digest(TASKS[0], text)
    strict.cheats(text, text, TASKS[0].original)  # a task may be as odd as a solution
    for level in LEVELS:
        rewrite(text, level)
    assert time.process_time() - start_s < 10
