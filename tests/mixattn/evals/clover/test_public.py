"""The loader, on a checkout made here in the public layout."""

import pytest

from mixattn.evals.clover.public import in_dialect, load
from mixattn.evals.dafny.scripted import ScriptedVerifier

PROGRAM = "method Twice(x: int) returns (r: int)\n  ensures r == 2 * x\n{\n  r := 2 * x;\n}\n"
LAYOUT = {
    "textbook_algo/twice/twice_strong.dfy": PROGRAM,
    "textbook_algo/twice/twice_spec.txt": "Double\nx.",
    "textbook_algo_unit_tests/twice/twice_tests.dfy": PROGRAM
    + "method Main() { var r := Twice(1); print r; }\n",
    "adversarial_incorrect/C1/twice/twice_C2.txt": "Triple x.",
    "adversarial_incorrect/C2/twice/twice_C1.dfy": PROGRAM.replace("==", ">="),
    "adversarial_incorrect/C6/twice/twice.dfy": PROGRAM.replace("2", "3"),
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in LAYOUT.items():
        path = tmp_path / "dataset" / "CloverBench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_public_layout_is_read_and_what_is_missing_is_named(checkout):
    triples, troubles = load(checkout)
    found = {t.kind: t for t in triples}
    assert list(found) == ["right", "C1", "C2", "C6"]
    assert found["right"].docstring == "Double x."
    assert found["C1"].docstring == "Triple x."
    assert found["C2"].annotation == "  ensures r >= 2 * x"
    assert found["C6"].method.body.split() == ["{", "r", ":=", "3", "*", "x;", "}"]
    assert found["C6"].tests.strip() == "method Main() { var r := Twice(1); print r; }"
    assert troubles == ["C3 twice: twice_C1.dfy is missing"]


def test_a_path_without_the_files_says_which(tmp_path, checkout):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder dataset/CloverBench/textbook_algo"):
        load(tmp_path / "empty")


def test_a_file_that_is_no_text_is_left_out_with_a_sentence(checkout):
    (checkout / "dataset/CloverBench/textbook_algo/twice/twice_strong.dfy").write_bytes(b"\xff\xfe\0")
    triples, troubles = load(checkout)
    assert {t.kind for t in triples} == {"C2", "C6"}
    assert len(troubles) == 3


def test_every_component_of_a_program_is_rewritten_as_its_right_one_needs(checkout):
    new = PROGRAM.replace("r := 2 * x;", "r := 0; for i := 0 to 2 { r := r + x; }")
    path = checkout / "dataset/CloverBench/textbook_algo/twice/twice_strong.dfy"
    path.write_text(new)
    triples, _ = load(checkout)
    read_by_2_3 = ScriptedVerifier(lambda text: "parse" if "for i" in text else "verified")
    rewritten = in_dialect(triples, read_by_2_3)
    assert [t.kind for t in rewritten] == [t.kind for t in triples]
    right, changed = rewritten[0], rewritten[-1]
    assert "while" in right.method.body
    assert right.annotation == triples[0].annotation
    assert changed.method.body.split() == triples[-1].method.body.split()


def test_tests_are_rewritten_even_where_the_program_need_not_be(checkout):
    path = checkout / "dataset/CloverBench/textbook_algo_unit_tests/twice/twice_tests.dfy"
    path.write_text(PROGRAM + "method Main() { for i := 0 to 3 { var r := Twice(i); print r; } }\n")
    rewritten = in_dialect(load(checkout)[0], ScriptedVerifier(lambda _: "verified"))
    assert "while" in rewritten[0].tests
    assert rewritten[0].method == load(checkout)[0][0].method
