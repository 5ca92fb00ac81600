"""Exit code and whole summary line give the verdict; neither does alone."""

import pytest

from mixattn.evals.dafny import official, report

DONE = "Dafny program verifier finished with"
TABLE = [
    (0, f"{DONE} 2 verified, 0 errors", "verified"),
    (0, f"{DONE} 0 verified, 0 errors", "empty"),
    (4, f"{DONE} 1 verified, 1 error", "failed"),
    (4, f"{DONE} 13 verified, 0 errors, 1 time out", "timeout"),
    (4, f"{DONE} 13 verified, 0 errors, 2 out of resource", "timeout"),
    (4, f"{DONE} 13 verified, 2 errors, 1 time out", "failed"),
    (2, "1 parse errors detected in a.dfy", "parse"),
    (2, "3 resolution/type errors detected in a.dfy", "resolve"),
    (1, "Unhandled Exception: System.NullReferenceException", "crash"),
    (0, "verified, 0 errors", "crash"),
    (0, f"{DONE} 2 verified, 0 errors, 1 time out", "crash"),
    (0, f"{DONE} 2 verified, 0 errors\n{DONE} 3 verified, 0 errors", "crash"),
    (-9, f"{DONE} 2 verified, 0 errors", "crash"),
    (0, "", "crash"),
]


@pytest.mark.parametrize(("exit_code", "output", "verdict"), TABLE)
def test_a_verdict_needs_both(exit_code, output, verdict):
    assert report.verdict(exit_code, output) == verdict


def test_the_public_check_takes_a_time_out_for_success():
    assert official.verified(f"{DONE} 13 verified, 0 errors, 1 time out")


def test_messages_have_their_places():
    output = (
        "program.dfy(2,44): Error BP5003: A postcondition might not hold on this return path.\n"
        "program.dfy(2,41): Related location: This is the postcondition that might not hold.\n"
        "Prover error: line 5 column 2: unknown parameter\n"
        "program.dfy(9,1): Warning: deprecated"
    )
    found = [(p.line, p.column, p.message.split(" ")[0]) for p in report.problems(output)]
    assert found == [(2, 44, "A"), (2, 41, "related:")]
