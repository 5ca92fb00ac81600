"""A run that is killed at any step and restarted gives the bits of an uninterrupted one: real processes."""

import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import forked
from train import progress

TIMING = {"seconds", "tokens_per_s"}


def command(workdir, *more):
    return ["train.main", "--config=tests/train/tiny.py", f"--workdir={workdir}", *more]


def start(workdir, *more):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return forked.Process(*command(workdir, *more), **pipes)


def finish(workdir, *more):
    done = forked.run(*command(workdir, *more), timeout_s=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stop(workdir, at_step, number):
    """Starts the run, sends it a signal once metrics.csv shows `at_step`, returns the ended process."""
    process = start(workdir)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        rows = progress.read(workdir / "metrics.csv")
        if rows and int(rows[-1]["step"]) >= at_step:
            break
        time.sleep(0.002)
    process.send_signal(number)
    process.out, process.err = process.communicate(timeout=60)
    return process


def trace(workdir):
    """Returns the rows of metrics.csv without the columns that depend on the clock."""
    return [
        {k: v for k, v in row.items() if k not in TIMING} for row in progress.read(workdir / "metrics.csv")
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("xla")))
    workdir = tmp_path_factory.mktemp("unbroken")
    finish(workdir)
    return workdir


@pytest.mark.parametrize("n_kills", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 5))])
def test_kills_and_a_ctrl_c_at_random_steps_change_no_bit(n_kills, unbroken, tmp_path):
    *kills, interrupt = sorted(random.Random(7).sample(range(1, 280), n_kills + 1))
    for at_step in kills:
        assert stop(tmp_path, at_step, signal.SIGKILL).returncode == -signal.SIGKILL
        assert not (tmp_path / "summary.json").exists()
    process = stop(tmp_path, interrupt, signal.SIGINT)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in process.err
    assert "Traceback" not in process.err
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == int(trace(tmp_path)[-1]["step"])  # no finished step is repeated
    assert f"resuming from the checkpoint of step {saved}" in finish(tmp_path)
    assert trace(tmp_path) == trace(unbroken)
    assert len(trace(tmp_path)) == 300
    one, other = (load_file(w / "model" / "model.safetensors") for w in (tmp_path, unbroken))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].view(np.int32), other[name].view(np.int32), err_msg=name)


def test_a_finished_run_is_not_trained_again(unbroken):
    before = (unbroken / "metrics.csv").read_bytes()
    assert "is trained already" in finish(unbroken)
    assert (unbroken / "metrics.csv").read_bytes() == before
