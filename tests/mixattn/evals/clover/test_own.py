"""Our own set: its numbers, and that the verifier accepts every triple, wrong ones included."""

from collections import Counter

import pytest

from mixattn.evals.clover import own, scripted
from mixattn.evals.clover.outputs import compare_outputs
from mixattn.evals.clover.triple import KINDS

EVERYTHING = own.right_triples() + own.wrong_triples()


def test_there_are_20_right_triples_and_15_wrong_ones_of_each_kind():
    assert Counter(t.kind for t in EVERYTHING) == {"right": 20, "C1": 15, "C2": 15, "C3": 15, "C6": 15}
    assert len({(t.name, t.kind) for t in EVERYTHING}) == 80
    assert {t.kind for t in EVERYTHING} == set(KINDS)


def test_a_wrong_triple_differs_from_the_right_one_in_what_its_kind_says():
    right = {t.name: t for t in own.right_triples()}
    differs = {"C1": "d", "C2": "a", "C3": "ad", "C6": "ac"}
    for t in own.wrong_triples():
        r = right[t.name]
        changed = "a" * (t.annotation != r.annotation) + "c" * (t.method.code != r.method.code)
        changed += "d" * (t.docstring != r.docstring)
        assert changed == differs[t.kind], (t.name, t.kind)


def test_every_text_has_one_meaning():
    """A scripted model looks texts up, so that none may stand for two programs."""
    for task, show in scripted._SHOWN.items():
        texts = [show(m) for p in own.programs() for m in (p.right, p.weak, p.changed)]
        assert len(set(texts)) == len(texts), task


def test_every_triple_verifies_the_wrong_ones_too(dafny):
    """All in one program, a module each, so that the verifier starts once."""
    programs = sorted({t.program() for t in EVERYTHING})
    text = "".join(f"module M{i} {{\n{program}}}\n" for i, program in enumerate(programs))
    found = dafny.verify(text)
    assert found.verdict == "verified", found.output
    assert found.n_verified >= len(programs) > 50


@pytest.mark.long
def test_every_triple_verifies_alone(dafny):
    for t in EVERYTHING:
        assert dafny.verify(t.program()).verdict == "verified", (t.name, t.kind)


@pytest.mark.long
def test_weak_and_changed_code_prints_something_else_than_the_right_code(dafny):
    for p in own.programs():
        for other in (p.weak, p.changed):
            found = compare_outputs(dafny.run, p.right.method, other.method, p.tests)
            assert found.likeness == "different", (p.name, other.sense, found.reason)
