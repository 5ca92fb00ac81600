"""Command lines: exit codes, one sentence on bad input, one object with --json."""

import json

import pytest

from mixattn.evals.dafnybench.tasks import OWN
from tests import forked


def ran(*words):
    return forked.run("mixattn.evals", *words)


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "binary.dfy").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "comment.dfy").write_text("/* no end")
    for words, fact in (
        (("dafny", "check", "missing.dfy"), "missing.dfy"),
        (("dafny", "check", str(tmp_path / "binary.dfy")), "UTF-8"),
        (("dafny", "check"), "FILE"),
        (("dafnybench", "strip", str(tmp_path / "comment.dfy")), "comment"),
        (("dafnybench", "show", f"--workdir={tmp_path}"), "no run"),
    ):
        found = ran(*words)
        assert (found.returncode, found.stdout) == (2, ""), words
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1
        assert fact in found.stderr


@pytest.mark.parametrize("command", ["dafny", "dafnybench"])
def test_help_teaches_with_examples(command):
    found = ran(command, "--help")
    assert found.returncode == 0
    assert f"python -m mixattn.evals {command} check" in found.stdout


def test_strip_prints_the_program_without_hints():
    found = ran("dafnybench", "strip", str(OWN / "power.dfy"))
    assert "while i < exponent" in found.stdout
    assert "invariant" not in found.stdout


def test_a_sample_is_run_shown_and_written(verify, tmp_path):
    words = ("--data=own", "--model=oracle", "--sample=2", "--seed=1", f"--workdir={tmp_path / 'run'}")
    found = ran("dafnybench", "run", *words, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["rates"]["all tasks"]["accepted"] == 2
    shown = ran("dafnybench", "show", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'table.csv'}")
    assert shown.returncode == 0, shown.stderr
    header = (tmp_path / "table.csv").read_text()
    assert "# sample: 2" in header
    assert "# note: These rates are of this verifier" in header
    other = ran("dafnybench", "run", *words[:2], words[3], f"--workdir={tmp_path / 'run'}")
    assert (other.returncode, "with sample=2, not None" in other.stderr) == (2, True)
