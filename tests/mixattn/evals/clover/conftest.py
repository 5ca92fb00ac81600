"""A verifier and a runner that know our own set by heart, and the real ones where Dafny is installed."""

import pytest

from mixattn.evals.clover import own
from mixattn.evals.clover.annotations import equivalence
from mixattn.evals.clover.checks import Tools
from mixattn.evals.clover.method import program
from mixattn.evals.clover.outputs import ProgramRun, installed_runner
from mixattn.evals.dafny.protocol import Verification, VerifierGone
from mixattn.evals.dafny.scripted import ScriptedVerifier
from mixattn.evals.dafny.verifier import installed


@pytest.fixture(scope="session")
def by_heart():
    """Tools without Dafny: code proves its own annotation and a right one the weak annotation; an annotation
    equals itself only; code prints itself. Its verdicts say "fake"."""
    good, equal = set(), set()
    for p in own.programs():
        for m in (p.right.method, p.weak.method, p.changed.method):
            good.add(program(m.signature, m.clauses, m.code))
            equal.add(equivalence(m, m.clauses))
        good.add(program(p.right.method.signature, p.weak.method.clauses, p.right.method.code))

    def decide(text):
        known = text in equal or text in good
        return Verification("verified" if known else "failed", n_verified=4 if known else 0)

    return Tools(ScriptedVerifier(decide), lambda text: ProgramRun(True, text), blocking=False)


@pytest.fixture(scope="session")
def dafny():
    """The real verifier and runner; verdicts are remembered between runs."""
    try:
        return Tools(installed(), installed_runner())
    except VerifierGone as why:
        pytest.skip(f"needs Dafny: {why}")
