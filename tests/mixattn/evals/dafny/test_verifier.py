"""The real verifier on programs whose verdict is known. Skipped where it is not installed."""

import subprocess
import time
from dataclasses import replace

import pytest

from mixattn.evals.dafny.install import SELF_TEST
from mixattn.evals.dafny.protocol import VerifierGone
from mixattn.evals.dafny.tool import Tool, find
from mixattn.evals.dafny.verifier import Dafny

ENDLESS = """function F(a: int, b: int, c: int): int { a * a * a + b * b * b - c * c * c }
lemma Fermat(a: int, b: int, c: int, d: int) requires a > 0 && b > 0 && c > 0
  ensures F(a, b, c) != 0 && F(a + d * b, b * c, c + a * d) * F(c, b, a) != F(d * d, a * b, c) + 7
{ assert forall x, y, z :: x > 1 && y > 1 && z > 1 ==> F(x, y, z) * x * y != F(z, x, y) * z + 1; }
"""


@pytest.mark.parametrize(("name", "program", "verdict"), SELF_TEST)
def test_the_self_test_programs_get_their_verdicts(verify, name, program, verdict):
    assert verify(program).verdict == verdict


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("", "empty"),
        ("// nothing", "empty"),
        ("\0", "parse"),
        ("(" * 10_000, "parse"),
        ("/* no end", "empty"),  # Dafny 2.3 reads on as if the file ended; the strict check refuses it
        ('method M() { print "no end', "parse"),
        ("method M()\r\n  ensures true\r\n{\r\n  assert 1 < 2;\r\n}\r\n", "verified"),
        ("\ufeffmethod M() { assert 1 < 2; }", "verified"),
        ("\ud800", "parse"),
    ],
)
def test_odd_texts_get_a_verdict(verify, program, verdict):
    assert verify(program).verdict == verdict


def test_the_verified_procedures_are_named(verify):
    found = verify("lemma L(n: nat) ensures n + 1 > n { }\nmethod M() ensures 1 > 2 { }")
    assert found.verdict == "failed"
    assert [name.rpartition(".")[2] for name in found.procedures] == ["L"]


def test_an_endless_proof_dies_with_its_solver(verify):
    start_s = time.monotonic()
    found = Dafny(find(), time_limit_s=100, wall_limit_s=6)(ENDLESS)
    assert found.verdict == "timeout"
    assert time.monotonic() - start_s < 30
    time.sleep(0.3)
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "/timeLimit:100" not in alive


def test_a_verifier_that_disappears_is_named():
    gone = Tool("/nowhere/dafny", "2.3.0", "/nowhere/z3", "4.8.5")
    with pytest.raises(VerifierGone, match="gone"):
        Dafny(gone)("method M() { }")
    assert replace(gone, dafny_version="4.3.0").is_new
