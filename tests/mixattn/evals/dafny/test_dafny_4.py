"""Dafny 4's command line, log and messages, with a stand-in for it: Dafny 4 itself has not been run."""

import pytest

from mixattn.evals.dafny import tool
from mixattn.evals.dafny.verifier import Dafny
from mixattn.evals.dafnybench.checking import Task, check
from tests.mixattn.evals.dafny.stand_in import dafny_4

ORIGINAL = (
    "method M(x: int) returns (y: int)\n  ensures y > x\n{\n  y := x + 1;\n}\nlemma L() { assert true; }\n"
)
BARE = ORIGINAL.replace("assert true; ", "")


@pytest.fixture
def new(tmp_path, monkeypatch):
    folder = dafny_4(tmp_path / "bin").parent
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    tool.find.cache_clear()
    yield Dafny(tool.find())
    tool.find.cache_clear()


def test_a_dafny_4_on_path_is_preferred_and_asked_with_its_own_words(new, tmp_path):
    assert new.tool.is_new
    assert (new.tool.dafny_version, new.tool.z3) == ("4.3.0", "")
    assert new(ORIGINAL).dafny == "4.3.0"
    new(ORIGINAL, flags=("/noCheating:1",))
    asked = (tmp_path / "bin" / "asked").read_text().splitlines()
    assert asked[0].startswith("verify --cores 1 --verification-time-limit 20 --log-format csv;LogFileName=")
    assert "--allow-axioms=false" in asked[1]
    assert not any(word.startswith("/") for line in asked for word in line.split())


@pytest.mark.parametrize(
    ("line", "verdict", "place", "message"),
    [
        ("// verified", "verified", None, ""),
        ("// failed", "failed", (3, 0), "a postcondition could not be proved on this return path"),
        ("// parse", "parse", (2, 17), "closeparen expected"),
        ("// resolve", "resolve", (2, 9), "unresolved identifier"),
        ("// timeout", "timeout", (2, 7), "timed out"),
    ],
)
def test_its_messages_are_read(new, line, verdict, place, message):
    found = new(f"{line}\n{ORIGINAL}")
    assert found.verdict == verdict
    assert ((found.errors[0].line, found.errors[0].column) if found.errors else None) == place
    assert message in (found.errors[0].message if found.errors else "")


def test_its_log_names_the_verified_procedures(new):
    assert new(ORIGINAL).procedures == ("L", "M")
    assert new(ORIGINAL).n_verified == 2
    assert new(f"// failed\n{ORIGINAL}").procedures == ()
    assert new("// nothing here\n").verdict == "empty"


def test_every_procedure_of_the_original_must_be_verified(new):
    task = Task("t", ORIGINAL, BARE)
    assert check(task, ORIGINAL, new).accepted
    fewer = check(task, f"// unlogged L\n{ORIGINAL}", new)
    assert not fewer.accepted
    assert [(cheat.rule, cheat.text) for cheat in fewer.cheats] == [("not verified", "L")]
