"""Stripping removes hints and nothing else, once and for all."""

import random

import pytest

from mixattn.evals.dafny import strict
from mixattn.evals.dafny.reader import read
from mixattn.evals.dafny.strip import strip
from mixattn.evals.dafnybench.cheats import HONEST
from mixattn.evals.dafnybench.tasks import own

PROGRAMS = {task.name: task.original for task in own()} | HONEST


@pytest.mark.parametrize("name", PROGRAMS)
def test_strip_is_idempotent_and_keeps_the_code(name):
    once = strip(PROGRAMS[name])
    assert strip(once) == once
    assert [t.text for t in read(once).code] == [t.text for t in read(PROGRAMS[name]).code]


def test_clauses_over_lines_proofs_and_nested_comments_go():
    program = """method M(n: nat)
{
  var i := 0;
  while i < n
    invariant i <= n /* a /* nested */ one */ &&
      forall k :: k in {1, 2} ==> k > 0
    decreases n - i
  {
    assert i < n by { assert i < n; }
    i := i + 1; assert i > 0;
  }
}
"""
    expected = "method M(n: nat)\n{\n  var i := 0;\n  while i < n\n  {\n    i := i + 1;\n  }\n}\n"
    assert strip(program) == expected


def test_blanks_and_comments_change_no_decision():
    dice = random.Random(3)
    for task in own()[:10]:
        pieces = [t.text for t in read(task.original).tokens]
        program = "".join(p + dice.choice([" ", "\n", " /* assume */ ", " // false\n"]) for p in pieces)
        assert strict.cheats(task.original, task.stripped, program) == ()


def test_any_change_of_a_code_token_is_noticed():
    dice = random.Random(5)
    for task in own():
        code = read(task.original).code
        token = dice.choice([t for t in code if t.end])
        program = task.original[: token.start] + task.original[token.end :]
        assert strict.cheats(task.original, task.stripped, program), token
