"""The command: answers, resuming after kill -9, and one sentence for what cannot work."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from mixattn import hf
from mixattn.model import Transformer
from mixattn.spec import ModelConfig
from serving import Request, Sampling
from serving.offload.machine_plan import GIB, PROGRAM_BYTES, MachineRates, MachineWorkload
from serving.offload.runtime import build
from serving.offload.runtime.checkpoint import locate

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ModelConfig(
    n_layers=4, d_model=256, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=1024, vocab_size=256,
    n_experts=8, experts_per_token=2, max_positions=128,
)  # fmt: skip
MEMORY_GB = (PROGRAM_BYTES + (80 << 20)) / GIB  # half of the experts, 96 MiB in all
MEMORY = f"--device_memory_gb={MEMORY_GB}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    hf.save(Transformer(CONFIG, rngs=nnx.Rngs(0)), path)
    return path


def asked(path, count=12, **more):
    rng = np.random.default_rng(0)
    lines = [
        {"id": f"q{i}", "prompt_ids": rng.integers(1, 250, 5 + i).tolist(), "max_tokens": 6 + i % 5, **more}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(model, requests, workdir, *args, memory=MEMORY):
    return [
        *(sys.executable, "-m", "serving.offload", "run", f"--checkpoint={model}", memory),
        *(f"--requests={requests}", f"--workdir={workdir}", *args),
    ]


def run(*args, **options):
    return subprocess.run(
        command(*args, **options), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def test_a_run_that_is_killed_ends_with_the_file_of_an_undisturbed_one(model, tmp_path):
    requests = asked(tmp_path / "requests.jsonl")
    slow = ("--throttle_mib=400", "--mode=stream", "--max_batch=2")  # the same plan in all runs
    whole = run(model, requests, tmp_path / "a", *slow[1:], "--json")
    assert whole.returncode == 0, whole.stderr
    report = json.loads(whole.stdout)
    assert report["answered"] == 12
    assert report["bytes"] > 0
    assert sum(report["bytes_planned"].values()) <= report["memory_bytes"]
    out = tmp_path / "b" / "answers.jsonl"
    with subprocess.Popen(
        command(model, requests, tmp_path / "b", *slow), cwd=ROOT, stdout=subprocess.PIPE
    ) as killed:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") >= 3):
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    done = out.read_bytes().count(b"\n")
    assert 3 <= done < 12
    again = run(model, requests, tmp_path / "b", *slow[1:], "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["kept"] >= 3
    assert out.read_bytes() == (tmp_path / "a" / "answers.jsonl").read_bytes()
    other = run(model, asked(tmp_path / "other.jsonl", temperature=0.5), tmp_path / "a")
    assert other.returncode == 2
    assert "with prompt and sampling" in other.stderr
    assert out.read_bytes() == (tmp_path / "a" / "answers.jsonl").read_bytes()


def truncated(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_weights(path):
    (path / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "args", "memory", "says"),
    [
        (None, (), "--device_memory_gb=0.05", "the least that works is"),
        (truncated, (), MEMORY, "not a complete safetensors file"),
        (without_weights, (), MEMORY, "model.safetensors"),
        (None, ("--schedule=s9",), MEMORY, "unknown schedule 's9'"),
        ("dense", (), MEMORY, "is a dense model"),
        ("no requests", (), MEMORY, "0 lines and no request"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_leaves_nothing(model, tmp_path, spoil, args, memory, says):
    path, requests = tmp_path / "model", asked(tmp_path / "requests.jsonl")
    if spoil == "dense":
        plain = ModelConfig(2, 32, 2, 1, 16, 64, 97)
        hf.save(Transformer(plain, rngs=nnx.Rngs(0)), path)
    else:
        shutil.copytree(model, path)
    if spoil == "no requests":
        requests.write_text("\n")
    elif callable(spoil):
        spoil(path)
    got = run(path, requests, tmp_path / "w", *args, memory=memory)
    assert got.returncode == 2, got.stderr
    assert says in got.stderr
    assert got.stderr.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_an_over_long_prompt_is_refused_alone(model, tmp_path):
    requests = asked(tmp_path / "requests.jsonl", 2)
    with requests.open("a") as more:
        more.write(json.dumps({"id": "long", "prompt_ids": [1] * 200, "max_tokens": 5}) + "\n")
    got = run(model, requests, tmp_path / "w")
    assert got.returncode == 1
    assert "1 of 3 requests" in got.stderr
    lines = [json.loads(line) for line in (tmp_path / "w" / "answers.jsonl").read_text().splitlines()]
    assert [line["finish_reason"] for line in lines] == ["length", "length", "refused"]
    assert "205 tokens" in lines[2]["error"]
    assert "128" in lines[2]["error"]


def offloaded(path, mode="stream"):
    checkpoint = locate(path)
    source = build.open_source(checkpoint)
    planner = build.planner(
        checkpoint, MachineRates(1e9, 1e-3, 1e-5), MachineWorkload(2, 40), MEMORY_GB * GIB
    )
    plan = dataclasses.replace(planner.best(mode), slots=16, resident=0)  # more would fit
    config = build.engine_config(checkpoint, plan.rows, plan.parts, 40)
    return build.build(checkpoint, source, plan, config), source


REQUEST = Request(client="a", prompt_ids=[1, 2, 3], sampling=Sampling(max_tokens=8))


def step_to_the_end(engine):
    while engine.live:
        engine.step()


@pytest.mark.parametrize("mode", ["stream", "cache"])
def test_a_disk_error_while_reading_reaches_the_caller_within_a_second(model, mode):
    made, source = offloaded(model, mode)
    made.engine.submit(REQUEST)
    made.engine.step()
    threads = threading.active_count()

    def broken(*args):
        raise OSError(errno.EIO, "the disk failed")

    source.reader._read_some = broken
    if mode == "cache":
        made.runner.cache.lend(made.plan.slots)
        made.runner.cache.give_back(range(made.plan.slots))
    began_s = time.monotonic()
    with pytest.raises(OSError, match="the disk failed"):
        step_to_the_end(made.engine)
    assert time.monotonic() - began_s < 3  # a second, and the load of other work
    assert threading.active_count() == threads
    source.close()


def test_a_file_that_is_changed_during_a_run_ends_it(model, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(model, path)
    made, source = offloaded(path)
    made.engine.submit(REQUEST)
    made.engine.step()
    os.utime(path / "model.safetensors", (1, 1))
    with pytest.raises(ValueError, match="changed while it was used"):
        made.engine.step()
    source.close()


MEASURE = """
import json, sys
def peak(): return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith("VmHWM"))
import jax, jax.numpy as jnp
jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
import mixattn.hf, serving.engine.engine, serving.offload.runtime.build
from serving.offload.commands import run
empty = peak()
from serving.offload.__main__ import main
try:
    main(["offload", "run", *sys.argv[1:]])
finally:
    print(json.dumps({"above_empty": peak() - empty}), file=sys.stderr)
"""


@pytest.mark.long
@pytest.mark.parametrize("mode", ["stream", "cache"])
def test_peak_memory_stays_within_the_plan_for_a_model_four_times_the_cap(tmp_path, mode):
    config = ModelConfig(
        n_layers=24, d_model=384, n_heads=4, n_kv_heads=1, head_dim=64, d_ff=896, vocab_size=512,
        n_experts=8, experts_per_token=2, max_positions=256,
    )  # fmt: skip
    hf.save(Transformer(config, rngs=nnx.Rngs(0)), tmp_path / "model")
    cap = (tmp_path / "model" / "model.safetensors").stat().st_size / 4 / GIB
    requests = asked(tmp_path / "requests.jsonl", 16)
    args = command(
        tmp_path / "model",
        requests,
        tmp_path / "w",
        f"--mode={mode}",
        "--json",
        memory=f"--device_memory_gb={cap}",
    )
    got = subprocess.run(
        [sys.executable, "-c", MEASURE, *args[4:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert got.returncode == 0, got.stderr
    report = json.loads(got.stdout.splitlines()[-1])
    planned = sum(report["bytes_planned"].values())
    above = json.loads(got.stderr.splitlines()[-1])["above_empty"]
    print(f"{mode}: peak {above / 2**20:.0f} MiB above the empty process, planned {planned / 2**20:.0f} MiB")
    assert planned <= cap * GIB
    assert above <= 1.1 * planned
