"""A verifier that vanishes in the middle of a run ends it in one sentence; the next run goes on from there.

The verifier is the stand-in for Dafny 4, which removes itself after a number of programs.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.mixattn.evals.dafny.stand_in import dafny_4


@pytest.fixture
def run(run_module, tmp_path):
    def run(calls, *words):
        (tmp_path / "bin" / "asked").unlink(missing_ok=True)
        dafny_4(tmp_path / "bin", calls)
        env = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "MIXATTN_DAFNY_HOME": str(tmp_path / "home"),
        }
        done = run_module("mixattn.evals", *(w.replace("DIR", str(tmp_path)) for w in words), env=env)
        return done, len((tmp_path / "bin" / "asked").read_text().splitlines())

    return run


def test_attempts_are_kept_and_the_run_goes_on(run, tmp_path):
    words = (
        "dafnybench",
        "run",
        "--data=own",
        "--model=oracle",
        "--sample=16",
        "--parallel=1",
        "--workdir=DIR/run",
    )
    done, _ = run(20, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    kept = len((tmp_path / "run" / "attempts.jsonl").read_text().splitlines())
    assert kept > 5
    assert f"{kept} attempts are kept" in said
    done, _ = run(1_000_000, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 16


def test_decided_programs_are_not_verified_again(run, tmp_path):
    words = ("dafnybench", "run", "--data=own", "--model=ground_truth", "--parallel=1")
    done, first = run(20, *words)
    assert (done.returncode, done.stdout, first) == (2, "", 20)
    assert "is remembered: run this again" in done.stderr.splitlines()[-1]
    done, then = run(1_000_000, *words, "--json", "--out=DIR/table.csv")
    assert done.returncode == 0, done.stderr
    assert then == 47 - 20
    assert json.loads(done.stdout)["exit_0"] == 47
    assert "dafny 4.3.0" in (tmp_path / "table.csv").read_text()


def test_clover_keeps_finished_triples(run):
    words = ("clover", "run", "--model=oracle", "--edges=anno-sound", "--kinds=right", "--out=DIR/clover")
    done, _ = run(5, *words, "--parallel=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "finished triples are kept" in done.stderr
    assert "Traceback" not in done.stderr
    done, _ = run(1_000_000, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["triples"] == 20


def attempts(folder):
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    return sorted((a["task"], a["solution"], a["accepted"], a["verdict"], a["feedback"]) for a in lines)


def test_a_run_killed_by_signal_9_ends_as_if_it_had_not_been(run, tmp_path):
    words = ("dafnybench", "run", "--data=own", "--model=oracle@2", "--sample=16", "--parallel=1")
    done, _ = run(1_000_000, *words, "--workdir=DIR/whole")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "home")
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env["MIXATTN_DAFNY_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-m", "mixattn.evals", *words, f"--workdir={tmp_path / 'cut'}"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "cut" / "attempts.jsonl"
    while not (journal.exists() and journal.read_text().count("\n") > 10) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert 10 < journal.read_text().count("\n") < len(attempts(tmp_path / "whole"))
    done, _ = run(1_000_000, *words, "--workdir=DIR/cut")
    assert done.returncode == 0, done.stderr
    assert attempts(tmp_path / "cut") == attempts(tmp_path / "whole")
