"""The command line: help, bad input in one sentence, one JSON object."""

import json

import pytest

PROGRAM = "method Twice(x: int) returns (r: int)\n  ensures r == 2 * x\n{\n  r := x + x;\n}\n"


@pytest.fixture
def clover(run_module, tmp_path):
    (tmp_path / "code.dfy").write_text(PROGRAM)
    (tmp_path / "doc.txt").write_text("Double x.")
    (tmp_path / "other.dfy").write_text("method Twice(x: nat) returns (r: int)")
    (tmp_path / "binary.dfy").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.dfy").write_text("method M() " + "{" * 10_000)

    def run(*words):
        return run_module("mixattn.evals", "clover", *(word.replace("DIR", str(tmp_path)) for word in words))

    return run


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fly"], "'fly' is not one of check, run, show"),
        (["check", "--code=DIR/none.dfy", "--doc=DIR/doc.txt"], "none.dfy does not exist"),
        (["check", "--code=DIR/code.dfy"], "--doc is missing"),
        (["check", "--code=DIR/binary.dfy", "--doc=DIR/doc.txt"], "not a text in UTF-8"),
        (["check", "--code=DIR/deep.dfy", "--doc=DIR/doc.txt"], "deep"),
        (["check", "--code=DIR/code.dfy", "--doc=DIR/doc.txt", "--spec=DIR/other.dfy"], "--spec is for"),
        (["run", "--model=gpt"], "--url names no server"),
        (["run", "--model=oracle", "--edges=doc2dog"], "'doc2dog'; the checks are"),
        (["run"], "--model is missing"),
        (["run", "--data=DIR/none", "--model=ground_truth"], "does not exist"),
        (["show", "--out=DIR/none"], "does not exist; make it with"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(clover, words, why):
    done = clover(*words)
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_check_prints_one_json_object_with_six_edges(clover, dafny):
    done = clover("check", "--code=DIR/code.dfy", "--doc=DIR/doc.txt", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["accepted"] is False
    assert found["edges"]["anno-sound"]["status"] == "pass"
    assert {e["status"] for name, e in found["edges"].items() if name != "anno-sound"} == {"cannot say"}
    assert len(found["edges"]) == 6


def test_a_run_on_the_own_set_is_shown_and_written(clover, dafny, tmp_path):
    words = ["--model=oracle", "--limit=2", "--edges=anno-sound,anno2doc", "--out=DIR/run", "--json"]
    done = clover("run", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["by_kind"][0]["accepted"] == 2
    again = clover("show", "--out=DIR/run", "--csv=DIR/table.csv")
    assert again.returncode == 0, again.stderr
    assert "scripted: measures the checks" in again.stdout
    assert "# dafny: " in (tmp_path / "table.csv").read_text()


def test_a_model_that_is_not_there_ends_a_run_with_what_is_done_kept(clover, dafny):
    words = ["--model=x", "--url=http://127.0.0.1:9/v1", "--limit=2", "--edges=anno-sound,doc2code"]
    done = clover("run", *words, "--out=DIR/run")
    assert done.returncode == 2
    assert "the model gave no answer" in done.stderr
    assert "finished triples are kept" in done.stderr
    assert "Traceback" not in done.stderr
