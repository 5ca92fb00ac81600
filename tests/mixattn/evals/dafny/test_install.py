"""Installing: a second run does nothing, and what cannot be done is one sentence with exit code 2."""

import os

import pytest

from mixattn.evals.dafny import install, tool
from mixattn.evals.dafny.protocol import VerifierGone
from mixattn.evals.dafny.scripted import ScriptedVerifier
from tests.mixattn.evals.dafny.stand_in import dafny_4


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """A machine without dafny and without apt-get."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MIXATTN_DAFNY_HOME", str(tmp_path / "home"))
    tool.find.cache_clear()
    yield tmp_path
    tool.find.cache_clear()


def executable(path, text="#!/bin/sh\nexit 0\n"):
    path.write_text(text)
    path.chmod(0o755)


def test_without_apt_a_sentence_says_so(nothing):
    with pytest.raises(VerifierGone, match="no dafny and no apt-get"):
        install.install(print)


def test_without_root_a_sentence_says_so(nothing, monkeypatch):
    executable(nothing / "apt-get")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(VerifierGone, match="needs root"):
        install.install(print)


def test_apt_that_fails_is_quoted(nothing, monkeypatch):
    executable(nothing / "apt-get", "#!/bin/sh\necho 'E: Unable to locate package dafny' >&2\nexit 100\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(VerifierGone, match="Unable to locate package"):
        install.install(print)


def test_a_dafny_4_needs_nothing_else(nothing, monkeypatch):
    dafny_4(nothing)
    monkeypatch.setenv("PATH", f"{nothing}:/usr/bin:/bin")
    said = []
    assert install.install(said.append).is_new
    assert said == []


def test_an_old_dafny_without_its_solver_says_how_to_get_it(nothing, monkeypatch):
    executable(nothing / "dafny", "#!/bin/sh\necho 'Dafny 2.3.0.10506'\n")
    with pytest.raises(VerifierGone, match="no solver that it works with; install it with"):
        tool.find()


def test_a_verifier_that_hangs_on_products_is_found_out():
    """Debian's own solver answers nothing in time; the sentence names what to do."""
    slow = ScriptedVerifier(lambda program: "timeout" if "Sum" in program else "failed")
    with pytest.raises(ValueError, match="a loop with its invariant is timeout, not verified"):
        install.self_test(slow)


def test_the_command_ends_with_2_and_one_sentence(run_module, tmp_path):
    env = {"PATH": str(tmp_path), "MIXATTN_DAFNY_HOME": str(tmp_path)}
    (tmp_path / "a.dfy").write_text("method M() { }")
    for words in (["install"], ["check", str(tmp_path / "a.dfy")]):
        done = run_module("mixattn.evals", "dafny", *words, env=env)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_a_second_install_does_nothing_and_tests_itself(verify, run_module):
    done = run_module("mixattn.evals", "dafny", "install")
    assert done.returncode == 0
    assert "the self-test's five verdicts are right" in done.stdout
    assert done.stderr == ""
