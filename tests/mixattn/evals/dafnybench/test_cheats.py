"""The strict check refuses every cheat and no honest solution; the public check does neither."""

import random

import pytest

from mixattn.evals.dafny import strict
from mixattn.evals.dafny.lexer import DafnyTextError, directives, lex
from mixattn.evals.dafnybench.cheats import CHEATS, HONEST, SOLUTION, TASK
from mixattn.evals.dafnybench.tasks import own


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refused(name):
    assert strict.cheats(SOLUTION, TASK, CHEATS[name])


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_solution_is_not_refused(name):
    assert strict.cheats(SOLUTION, TASK, HONEST[name]) == ()


def test_a_comment_or_string_that_does_not_end_is_refused():
    for end in ("/* no end", 'const s := "no end'):
        assert [c.rule for c in strict.cheats(SOLUTION, TASK, SOLUTION + end)] == ["unreadable"]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("assume false", "assume"),
        ("assume in a calc's hint", "assume"),
        ("assume an axiom", "assume"),
        ("expect", "expect"),
        ("verify false", "attribute"),
        ("verify over lines", "attribute"),
        ("free ensures", "free"),
        ("include", "include"),
        ("decreases *", "decreases *"),
        ("loop without body", "no body"),
        ("forall without body", "no body"),
        ("lemma without body", "no body"),
        ("directive around the specification", "directive"),
        ("changed code", "changed"),
    ],
)
def test_the_reason_has_a_name(name, rule):
    assert rule in {c.rule for c in strict.cheats(SOLUTION, TASK, CHEATS[name])}


def test_there_are_cheats_of_every_kind_and_honest_solutions():
    assert len(CHEATS) > 250
    assert len(HONEST) > 90
    assert len(set(CHEATS.values())) == len(CHEATS)
    assert not set(CHEATS.values()) & set(HONEST.values())


def test_comments_and_blanks_between_tokens_hide_no_cheat():
    dice = random.Random(9)
    for program in CHEATS.values():
        try:
            tokens = lex(program)
        except DafnyTextError:
            continue
        if directives(program):
            continue  # they stand at the start of a line, or are none
        spread = "".join(t.text + dice.choice([" ", "\n", "\t", " /* true */ ", " // ok\n"]) for t in tokens)
        assert strict.cheats(SOLUTION, TASK, spread), program


@pytest.mark.parametrize(
    "words",
    [
        *("assume false;", "assume {:axiom} false;", "expect false;", ":| assume false", "free"),
        *("{:verify false}", "{:axiom}", "{:extern}", "{:options}", "decreases *", "include", "..."),
    ],
)
def test_what_is_forbidden_is_refused_between_any_two_tokens(words):
    """Whatever the place makes of it: code, a hint, or nothing that Dafny can read."""
    for task in own():
        for token in lex(task.original)[::23]:
            program = f"{task.original[: token.start]} {words} {task.original[token.start :]}"
            assert strict.cheats(task.original, task.stripped, program), (task.name, token)
