"""The same run on one device, on eight and on two processes; a checkpoint moves between them.

Float32 sums come in another order on another mesh: losses agree to 2e-4 over twelve steps.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from train import mesh, progress

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 2e-4
SIZES = ("--config.train.stages[0].batch_size=8", "--config.checkpoints.every=6")
EIGHT = ("--config.mesh.fsdp=4", "--config.mesh.tensor=2")


def start(workdir, *arguments, devices=1, steps=12):
    command = [sys.executable, "-m", "train.main", "--config=tests/train/tiny.py", f"--workdir={workdir}"]
    command += [*SIZES, f"--config.train.stages[0].steps={steps}", *arguments]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes):
    ended = [p.communicate(timeout=240) for p in processes]
    for process, (_, err) in zip(processes, ended):
        assert process.returncode == 0, err
    return ended[0][0]


def losses(workdir):
    return np.array([float(row["loss"]) for row in progress.read(workdir / "metrics.csv")])


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    finish(start(workdir))
    return workdir


def test_eight_devices_resume_a_checkpoint_of_one_with_the_same_losses(one_device, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(one_device, workdir)
    out = finish(start(workdir, *EIGHT, "--step=6", devices=8))
    assert "resuming from the checkpoint of step 6" in out
    np.testing.assert_allclose(losses(workdir), losses(one_device), atol=TOLERANCE)


@pytest.mark.long
def test_experts_over_devices_give_the_losses_of_one_device(tmp_path):
    experts = ("--config.model.n_experts=4", "--config.model.experts_per_token=2")
    split = ("--config.mesh.expert=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    finish(
        start(tmp_path / "one", *experts, steps=6),
        start(tmp_path / "split", *experts, *split, devices=8, steps=6),
    )
    np.testing.assert_allclose(losses(tmp_path / "split"), losses(tmp_path / "one"), atol=TOLERANCE)
    loads = [float(row["expert_load_max"]) for row in progress.read(tmp_path / "one" / "metrics.csv")]
    assert all(0.25 <= load < 1 for load in loads)


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pair(workdir, steps=12):
    address = f"--coordinator=127.0.0.1:{port()}"
    shared = ("--config.mesh.fsdp=2", address, "--processes=2")
    return [start(workdir, *shared, f"--process={i}", devices=2, steps=steps) for i in range(2)]


def test_two_processes_give_the_losses_of_one(one_device, tmp_path):
    finish(*pair(tmp_path))
    np.testing.assert_allclose(losses(tmp_path), losses(one_device), atol=TOLERANCE)


@pytest.mark.long
def test_when_one_of_two_processes_is_killed_a_restart_resumes(one_device, tmp_path):
    processes = pair(tmp_path, steps=400)
    deadline = time.monotonic() + 240
    folder = tmp_path / "checkpoints"
    while not [p for p in folder.glob("*") if p.name.isdigit()] and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    time.sleep(2)
    # The survivor may wait for its partner for long, so it is killed too.
    processes[0].send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=60)
    assert not (tmp_path / "summary.json").exists()
    assert "resuming from the checkpoint of step" in finish(*pair(tmp_path, steps=400))
    unbroken = tmp_path / "unbroken"
    finish(start(unbroken, steps=400))
    np.testing.assert_allclose(losses(tmp_path)[:12], losses(unbroken)[:12], atol=TOLERANCE)
    assert len(losses(tmp_path)) == 400


@pytest.mark.parametrize(
    ("path", "shape", "want"),
    [
        ("blocks.3.attention.q.kernel", (64, 32), P("fsdp", "tensor")),
        ("blocks.3.attention.o.kernel", (32, 64), P("tensor", "fsdp")),
        ("blocks.3.ffn.up.kernel", (64, 96), P("fsdp", "tensor")),
        ("blocks.3.ffn.down.kernel", (96, 64), P("tensor", "fsdp")),
        ("blocks.3.ffn.up", (4, 64, 96), P("expert", "fsdp", "tensor")),
        ("embed.table", (300, 64), P("tensor", "fsdp")),
        ("embed.table", (301, 64), P(None, "fsdp")),
        ("final_norm.gain", (64,), P()),
        ("blocks.3.attention.q_norm.gain", (32,), P()),
    ],
)
def test_the_table_shards_each_kind_of_parameter(path, shape, want):
    devices = jax.sharding.AbstractMesh((1, 2, 2, 2), mesh.AXES)
    got = mesh.parameter_sharding(devices, path, shape).spec
    assert P(*got, *[None] * (len(shape) - len(got))) == P(*want, *[None] * (len(shape) - len(want)))
