"""Taking a program apart, on tokens."""

import pytest

from mixattn.evals.clover import own
from mixattn.evals.clover.method import Clause, Parameter, program, read_method


def clauses(text):
    return [(c.kind, c.text) for c in read_method(text).clauses]


def test_a_clause_may_span_lines_and_hold_comments_and_keywords_in_strings():
    text = """method M(s: string, x: int) returns (r: int) // ensures false
      requires s == "ensures {" /* requires
        /* nested */ false */ && x
        > 0
      ensures r > x ;
    { r := x + 1; }"""
    assert clauses(text) == [("requires", 's == "ensures {" && x > 0'), ("ensures", "r > x")]
    assert read_method(text).body == "{ r := x + 1; }"


@pytest.mark.parametrize(
    "expression",
    [
        "r == {1, 2}",
        "r == {}",
        "multiset(s[..]) == multiset{1}",
        "forall i {:trigger s[i]} :: 0 <= i < |s| ==> s[i] == 0",
        "|s| == |s|",
        "r == |{1, 2}|",
        "if x > 0 then {1} == {1} else {} == {}",
        "match o { case None => true case Some(v) => v > 0 }",
        "r == |set i | i in s && i < x|",
        "'{' == '{'",
        "old(a[..]) == a[..]",
    ],
)
@pytest.mark.parametrize("brace", ["{ }", "\n{ x := {1}; }"])
def test_the_body_starts_at_its_own_brace(expression, brace):
    found = read_method(f"method M() ensures {expression} {brace}")
    assert found.clauses == (Clause("ensures", expression),)
    assert found.body == brace.strip()


def test_signature_parameters_and_termination_hints():
    found = read_method(
        "lemma L() {} method {:fuel 2} M<T(==), U>(ghost a: map<int, seq<T>>, b: array2<U>)\n"
        " returns (ghost r: (int, bool)) modifies b decreases |a|, 1 { } function f(): int { 1 }"
    )
    assert (found.name, found.type_parameters) == ("M", "<T(==), U>")
    assert found.inputs == (Parameter("a", "map<int, seq<T>>", True), Parameter("b", "array2<U>"))
    assert found.outputs == (Parameter("r", "(int, bool)", True),)
    assert found.clauses == (Clause("modifies", "b"),)
    assert found.code == "  decreases |a|, 1\n{ }"
    assert found.others.split() == ["lemma", "L()", "{}", "function", "f():", "int", "{", "1", "}"]


def test_a_method_of_our_own_survives_the_round_trip():
    for p in own.programs():
        for meaning in (p.right, p.weak, p.changed):
            m = meaning.method
            assert read_method(program(m.signature, m.clauses, m.code)) == m


def test_signatures_are_compared_without_blanks_and_comments():
    first, same, other = (read_method(f"method M({x})") for x in ("x: int", " x :int /* */", "x: nat"))
    assert first.same_signature(same)
    assert not first.same_signature(other)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 declarations"),
        ("method A() {} method B() {}", "2 declarations"),
        ("function f(): int { 1 }", "0 declarations"),
        ("method M", "ends before"),
        ("method M(x)", "needs a name and a type"),
        ("method M(x: int) requires {", "is not closed"),
        ('method M() { print "', "string"),
        ("method M() /* ", "comment"),
        ("method M() requires ensures true {}", "no expression"),
        ("method M() returns 3 {}", "brackets"),
        ("method M() " + "{" * 10_000, "deep"),
        ("\0", "NUL"),
    ],
)
def test_what_is_no_single_method_is_refused_in_a_sentence(text, why):
    with pytest.raises(ValueError, match=why):
        read_method(text)
