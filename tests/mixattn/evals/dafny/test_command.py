"""`dafny check`: exit codes, what is printed, one JSON object."""

import json

import pytest

PROGRAMS = {
    "verified": "lemma L(n: nat) ensures n + 1 > n { }\n",
    "failed": "method M(x: int) returns (y: int)\n  ensures y > x\n{\n  y := x;\n}\n",
    "parse": "method M(x: int {\n",
    "resolve": "method M() ensures Missing() { }\n",
    "empty": "// nothing\n",
}
FIELDS = {"verdict", "errors", "n_verified", "procedures", "seconds", "cpu_seconds", "dafny", "z3"}


@pytest.mark.parametrize("verdict", PROGRAMS)
def test_verdict_exit_code_and_fields(verify, run_module, tmp_path, verdict):
    (tmp_path / "a.dfy").write_text(PROGRAMS[verdict])
    done = run_module("mixattn.evals", "dafny", "check", str(tmp_path / "a.dfy"), "--json")
    assert done.returncode == (0 if verdict == "verified" else 1)
    found = json.loads(done.stdout)
    assert set(found) == FIELDS
    assert found["verdict"] == verdict
    assert bool(found["errors"]) == (verdict not in ("verified", "empty"))
    assert all(set(error) == {"line", "column", "code", "message"} for error in found["errors"])


def test_messages_have_their_place(verify, run_module, tmp_path):
    (tmp_path / "a.dfy").write_text(PROGRAMS["failed"])
    done = run_module("mixattn.evals", "dafny", "check", str(tmp_path / "a.dfy"))
    assert done.stdout.startswith("failed: 0 procedures verified")
    assert "line 3, column 0: A postcondition might not hold" in done.stdout
    assert str(tmp_path) not in done.stdout
