"""Equality of code by the output of unit tests, and what is refused before it is compiled."""

import pytest

from mixattn.evals.clover.method import read_method
from mixattn.evals.clover.outputs import ProgramRun, compare_outputs, runnable

TESTS = 'method Main() { var r := M(3); print r, "\\n"; }'


def method(body, before=""):
    return read_method(f"{before}method M(x: int) returns (r: int) requires x > 0 {body}")


GOOD = method("{ r := x + 1; }")


@pytest.mark.parametrize(
    ("first", "second", "likeness"),
    [
        (ProgramRun(True, "4\n"), ProgramRun(True, "4\n"), "equal"),
        (ProgramRun(True, "4\n"), ProgramRun(True, "5\n"), "different"),
        (ProgramRun(True, "4\n"), ProgramRun(True, "4\n5\n"), "different"),
        (ProgramRun(True, "4\n"), ProgramRun(False, "no"), "malformed"),
        (ProgramRun(False, "no"), ProgramRun(True, "4\n"), "cannot say"),
        (ProgramRun(False, "no"), ProgramRun(False, "no"), "cannot say"),
    ],
)
def test_two_programs_are_equal_only_if_both_run_and_print_the_same(first, second, likeness):
    runs = [first, second]
    assert compare_outputs(lambda text: runs.pop(0), GOOD, GOOD, TESTS).likeness == likeness


@pytest.mark.parametrize(
    ("body", "before", "why"),
    [
        ('{ print "4"; r := 5; }', "", "print"),
        ("{ r := 5; }", 'method {:extern "System.IO.File", "Delete"} D(s: string) ', "attribute 'extern'"),
        ("{ r := 5; }", "method {:main} Other() { } ", "attribute 'main'"),
        ("{ r := 5; }", "method Main() { } ", "Main"),
        ("{ r := 5; }", 'include "/etc/passwd" ', "include"),
        ("{ assume false; r := 5; }", "", "assume"),
        ("", "", "no body"),
    ],
)
def test_code_that_reaches_outside_or_prints_is_never_compiled(body, before, why):
    with pytest.raises(ValueError, match=why):
        runnable(read_method(f"{before}method M(x: int) returns (r: int) {body}", "M"), TESTS)


def test_words_in_comments_and_strings_are_harmless():
    assert runnable(method('{ var s := "assume include"; r := |s|; /* {:extern} print */ }'), TESTS)


def test_without_tests_nothing_is_equal():
    assert compare_outputs(lambda text: ProgramRun(True, ""), GOOD, GOOD, " ").likeness == "cannot say"


def test_real_programs_are_compiled_and_run(dafny):
    same = method("{ var y := x; r := 1 + y; }")
    assert compare_outputs(dafny.run, GOOD, same, TESTS).likeness == "equal"
    ran = dafny.run(runnable(GOOD, TESTS))
    assert ran == ProgramRun(True, "\n4\n")


def test_a_real_program_that_crashes_or_does_not_compile_did_not_run(dafny):
    crashes = method("{ var a := new int[1]; r := a[x]; }")
    assert compare_outputs(dafny.run, GOOD, crashes, TESTS).likeness == "malformed"
    unknown = method("{ r := Missing(x); }")
    found = compare_outputs(dafny.run, unknown, unknown, TESTS)
    assert found.likeness == "cannot say"
    assert "Missing" in found.reason
