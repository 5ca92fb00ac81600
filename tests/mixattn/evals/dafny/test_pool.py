"""Every program gets one verdict; a time-out is tried once more, alone; verdicts are remembered."""

import pytest

from mixattn.evals.dafny.cache import Remember
from mixattn.evals.dafny.pool import verify_all
from mixattn.evals.dafny.protocol import Verification, VerifierGone, located
from mixattn.evals.dafny.scripted import ScriptedVerifier


def test_each_program_is_verified_once_and_time_outs_twice():
    verify = ScriptedVerifier(lambda program: "timeout" if program == "p3" else "verified")
    found = dict(verify_all(((f"n{i}", f"p{i}") for i in range(20)), verify, 3))
    assert len(found) == 20
    assert found["n3"].verdict == "timeout"
    assert found["n3"].tries == 2
    assert verify.asked.count("p3") == 2
    assert len(verify.asked) == 21
    assert verify.asked[-1] == "p3"


def test_what_was_done_before_the_verifier_went_is_kept():
    def gone(program):
        if program == "p2":
            raise VerifierGone("gone")
        return "verified"

    done = []
    found = verify_all([(f"p{i}", f"p{i}") for i in range(9)], ScriptedVerifier(gone), 1)
    with pytest.raises(VerifierGone):
        done.extend(name for name, _ in found)
    assert done[:2] == ["p0", "p1"]


def test_verdicts_are_remembered_by_program_flags_and_settings(tmp_path):
    inner = ScriptedVerifier(lambda program: "crash" if program == "c" else "failed")
    for settings in ("one", "one", "two"):
        verify = Remember(inner, settings, tmp_path)
        verify("a")
        verify("a", flags=("/x",))
    verify("c")
    verify("c")
    assert inner.asked == ["a"] * 4 + ["c"] * 2


def test_a_remembered_time_out_does_not_answer_for_a_second_try(tmp_path):
    inner = ScriptedVerifier(lambda _: "timeout")
    verify = Remember(inner, "", tmp_path)
    assert [verify("a").tries, verify("a").tries, verify("a", tries=2).tries, verify("a").tries] == [
        1,
        1,
        2,
        2,
    ]
    assert len(inner.asked) == 2


def test_a_crash_is_tried_once_more_alone_and_then_remembered(tmp_path):
    inner = ScriptedVerifier(lambda program: "crash" if program == "c" else "verified")
    verify = Remember(inner, "", tmp_path)
    for _ in range(3):
        found = dict(verify_all([("c", "c"), ("d", "d")], verify, 2))
        assert (found["c"].verdict, found["c"].tries, found["d"].tries) == ("crash", 2, 1)
    assert sorted(inner.asked) == ["c", "c", "d"]


def test_a_torn_memory_is_asked_anew(tmp_path):
    inner = ScriptedVerifier(lambda _: "verified")
    Remember(inner, "", tmp_path)("a")
    next(tmp_path.rglob("*.json")).write_text("{")
    assert Remember(inner, "", tmp_path)("a").verdict == "verified"
    assert len(inner.asked) == 2


@pytest.mark.parametrize("verdict", ["failed", "timeout", "parse", "resolve", "empty", "crash"])
def test_a_model_is_always_told_something(verdict):
    assert located(Verification(verdict))
