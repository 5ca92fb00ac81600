"""Equivalence of annotations: what the lemmas say, and what the real verifier makes of them."""

import pytest

from mixattn.evals.clover.annotations import compare_annotations, equivalence
from mixattn.evals.clover.method import Clause, read_method
from mixattn.evals.dafny.protocol import Verification
from mixattn.evals.dafny.scripted import ScriptedVerifier

INTS = "method M(x: int, y: int) returns (r: int)"
ARRAY = "method M(a: array<int>, b: array<int>, i: int)"
RANGE = "requires 0 <= i < a.Length && 0 <= i < b.Length"
EQUAL = {
    "reordered": (INTS, "ensures r > x && r > y", "ensures r > y ensures r > x"),
    "renamed bound variable": (
        "method M(s: seq<int>) returns (r: int)",
        "ensures forall i :: 0 <= i < |s| ==> s[i] < r",
        "ensures forall k :: 0 <= k < |s| ==> r > s[k]",
    ),
    "negation": (INTS, "requires x < y ensures r == y", "requires !(y <= x) ensures r == y"),
    "empty": (INTS, "", "requires true ensures true"),
    "old value of an array": (
        ARRAY,
        f"{RANGE} modifies a ensures a[i] == old(a[i]) + 1",
        f"{RANGE} modifies a ensures old(a[i]) == a[i] - 1",
    ),
    "new array": (
        "method M(a: array<int>) returns (r: array<int>)",
        "ensures fresh(r) && r[..] == a[..]",
        "ensures fresh(r) ensures r.Length == a.Length && a[..] == r[..]",
    ),
}
DIFFERENT = {
    "weaker": (INTS, "ensures r == x", "ensures r >= x"),
    "stronger": (INTS, "ensures r >= x", "ensures r == x"),
    "wider precondition": (INTS, "requires x > 0 ensures r == x", "ensures r == x"),
    "narrower precondition": (INTS, "ensures r == x", "requires x > 0 ensures r == x"),
    "not defined": ("method M(s: seq<int>) returns (r: int)", "ensures true", "ensures s[0] == s[0]"),
    "contradiction": (INTS, "ensures r == x", "ensures false"),
    "old instead of new": (
        ARRAY,
        f"{RANGE} modifies a ensures a[i] == b[i]",
        f"{RANGE} modifies a ensures old(a[i]) == b[i]",
    ),
    "may modify more": (ARRAY, "", "modifies a"),
    "modifies another": (ARRAY, "modifies a", "modifies b"),
}


def pair(case):
    signature, first, second = case
    return read_method(f"{signature} {first}"), read_method(f"{signature} {second}").clauses


def in_modules(cases, turned=False):
    """One program for all cases, so that the verifier starts once; and the first line of each module."""
    lines, starts = [], []
    for number, case in enumerate(cases.values()):
        signature, first, second = case
        starts.append(len(lines) + 1)
        text = equivalence(*pair((signature, second, first) if turned else case))
        lines += [f"module M{number} {{", *text.splitlines(), "}"]
    return "\n".join(lines) + "\n", starts


@pytest.mark.parametrize("turned", [False, True], ids=["as given", "turned"])
def test_equivalent_annotations_are_proved_equal_both_ways(dafny, turned):
    found = dafny.verify(in_modules(EQUAL, turned)[0])
    assert found.verdict == "verified", found.output
    assert found.n_verified >= 4 * len(EQUAL)


def test_no_annotation_that_differs_is_proved_equal(dafny):
    text, starts = in_modules(DIFFERENT)
    found = dafny.verify(text)
    refuted = {max(i for i, start in enumerate(starts) if start <= e.line) for e in found.errors}
    assert [name for i, name in enumerate(DIFFERENT) if i not in refuted] == []
    assert found.verdict == "failed"


def test_an_annotation_that_refers_to_nothing_is_malformed(dafny):
    found = compare_annotations(dafny.verify, *pair((INTS, "ensures r == x", "ensures r == z")))
    assert found.likeness == "malformed"
    assert "z" in found.reason


@pytest.mark.parametrize(
    ("verdicts", "likeness"),
    [
        (["verified"], "equal"),
        (["failed", "verified"], "different"),
        (["failed", "failed"], "cannot say"),
        (["failed", "timeout"], "cannot say"),
        (["resolve", "verified"], "malformed"),
        (["resolve", "resolve"], "cannot say"),
        (["timeout"], "cannot say"),
        (["crash"], "cannot say"),
        (["empty"], "cannot say"),
    ],
)
def test_only_four_proved_lemmas_make_annotations_equal(verdicts, likeness):
    left = list(verdicts)
    verify = ScriptedVerifier(lambda text: Verification(left.pop(0), n_verified=4))
    case = (INTS, "ensures r == x", "ensures x == r")
    assert compare_annotations(verify, *pair(case)).likeness == likeness
    assert not left


def test_three_proved_lemmas_are_not_enough():
    verify = ScriptedVerifier(lambda text: Verification("verified", n_verified=3))
    assert compare_annotations(verify, *pair((INTS, "", "ensures true"))).likeness == "cannot say"


@pytest.mark.parametrize(
    "signature",
    [
        "class C { } method M(c: C)",
        "method M(s: seq<array<int>>)",
        "method M(a: array<array<int>>)",
        "method M(a: array?<int>)",
        "method M(o: object)",
        "method M(a: array<int>) modifies a, this",
    ],
)
def test_a_heap_beyond_plain_arrays_is_never_a_silent_pass(signature):
    verify = ScriptedVerifier(lambda text: Verification("verified", n_verified=9))
    method = read_method(f"{signature} ensures true")
    assert compare_annotations(verify, method, method.clauses).likeness == "cannot say"
    assert not verify.asked


@pytest.mark.parametrize(
    "clause", ["ensures (assume false; r == x)", "ensures forall i {:axiom} :: i == i", "ensures r == x@L"]
)
def test_an_annotation_that_assumes_is_malformed(clause):
    verify = ScriptedVerifier(lambda text: Verification("verified", n_verified=9))
    method = read_method(f"{INTS} ensures r == x")
    other = read_method(f"{INTS} {clause}").clauses
    assert compare_annotations(verify, method, other).likeness == "malformed"
    assert not verify.asked


def test_a_clause_cannot_end_the_lemma_and_start_another(dafny):
    """The answer smuggles a declaration that would leave a lemma without a body, and so without a proof."""
    method = read_method(f"{INTS} ensures r == x")
    smuggled = (Clause("ensures", "true lemma Other() ensures r == y"),)
    assert compare_annotations(dafny.verify, method, smuggled).likeness == "malformed"
