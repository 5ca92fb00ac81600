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
from serving.offload.runtime import build, sources
from serving.offload.runtime.checkpoint import locate
from tests import forked

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
        *("serving.offload", "run", f"--checkpoint={model}", memory),
        *(f"--requests={requests}", f"--workdir={workdir}", *args),
    ]


def run(*args, **options):
    return forked.run(*command(*args, **options), timeout_s=200)


SLOW = ("--throttle_mib=400", "--mode=stream", "--max_batch=2")  # one plan, with time to be interrupted


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """The requests, and the workdir and report of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    requests = asked(folder / "requests.jsonl")
    done = run(model, requests, folder / "w", *SLOW[1:], "--json")
    assert done.returncode == 0, done.stderr
    return requests, folder / "w", json.loads(done.stdout)


def test_a_report_says_what_was_answered_and_read(undisturbed):
    _, _, report = undisturbed
    assert report["answered"] == 12
    assert report["bytes"] > 0
    assert sum(report["bytes_planned"].values()) <= report["memory_bytes"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_ends_with_the_file_of_an_undisturbed_one(model, tmp_path, undisturbed, number):
    requests, whole, _ = undisturbed
    out = tmp_path / "w" / "answers.jsonl"
    args = command(model, requests, tmp_path / "w", *SLOW)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with forked.Process(*args, text=True, **pipes) as stopped:
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s and not (out.exists() and out.read_bytes().count(b"\n") >= 3):
            time.sleep(0.05)
        before = out.read_bytes()
        stopped.send_signal(number)
        began_s = time.monotonic()
        _, told = stopped.communicate(timeout=60)
    if number == signal.SIGINT:
        assert time.monotonic() - began_s < 5  # a pass of a quarter of a second, and the load of other work
        assert stopped.returncode == 130
        assert told.strip().splitlines()[-1] == "stopped by Ctrl-C; files written so far are complete"
        assert "Traceback" not in told
        assert out.read_bytes().endswith(b"\n")
        # What was answered stays; a pass later at most the outputs of one more pass are there.
        assert out.read_bytes().startswith(before)
        assert out.read_bytes().count(b"\n") <= before.count(b"\n") + 2
    assert 3 <= out.read_bytes().count(b"\n") < 12
    again = run(model, requests, tmp_path / "w", *SLOW[1:], "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["kept"] >= 3
    assert out.read_bytes() == (whole / "answers.jsonl").read_bytes()


def test_answers_of_other_questions_are_refused_and_kept(model, tmp_path, undisturbed):
    _, whole, _ = undisturbed
    before = (whole / "answers.jsonl").read_bytes()
    other = run(model, asked(tmp_path / "other.jsonl", temperature=0.5), whole)
    assert other.returncode == 2
    assert "with prompt and sampling" in other.stderr
    assert (whole / "answers.jsonl").read_bytes() == before


def truncated(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_weights(path):
    (path / "model.safetensors").unlink()


# One process that has imported everything, and a copy of it for each command: imports take most of the time.
EACH = """
import json, os, sys, tempfile
import serving.offload.commands.run, serving.offload.runtime.build
from serving.offload.__main__ import main
told = []
for args in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as errors:
        if not (child := os.fork()):
            os.dup2(errors.fileno(), 2)
            try:
                main(["offload", *args])
            except SystemExit as why:
                os._exit(why.code or 0)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        told.append([status, errors.read().decode()])
print(json.dumps(told))
"""
SPOILT = [  # what is wrong with the model or the requests, flags, memory, what is said
    (None, (), "--device_memory_gb=0.05", "the least that works is"),
    (truncated, (), MEMORY, "not a complete safetensors file"),
    (without_weights, (), MEMORY, "model.safetensors"),
    (None, ("--schedule=s9",), MEMORY, "unknown schedule 's9'"),
    (None, ("--cache_policy=mru",), MEMORY, "unknown cache_policy 'mru'; known: lru, frequency"),
    ("dense", (), MEMORY, "is a dense model"),
    ("no requests", (), MEMORY, "0 lines and no request"),
    ("long requests", (), MEMORY, "needs 205 tokens; the model's context has 128"),
    (None, ("--host_memory_gb=0.01",), MEMORY, "but the experts have 0.094 GiB"),
]


def test_what_cannot_work_is_one_sentence_and_leaves_nothing(model, tmp_path):
    commands = []
    for number, (spoil, flags, memory, _) in enumerate(SPOILT):
        folder = tmp_path / str(number)
        folder.mkdir()
        path, requests = folder / "model", asked(folder / "requests.jsonl")
        if spoil == "dense":
            hf.save(Transformer(ModelConfig(2, 32, 2, 1, 16, 64, 97), rngs=nnx.Rngs(0)), path)
        else:
            shutil.copytree(model, path)
        if spoil == "no requests":
            requests.write_text("\n")
        elif spoil == "long requests":
            requests.write_text(json.dumps({"id": "long", "prompt_ids": [1] * 200, "max_tokens": 5}) + "\n")
        elif callable(spoil):
            spoil(path)
        commands.append(command(path, requests, folder / "w", *flags, memory=memory)[1:])
    args = [sys.executable, "-c", EACH, json.dumps(commands)]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    for number, ((_, _, _, says), (status, told)) in enumerate(
        zip(SPOILT, json.loads(done.stdout), strict=True)
    ):
        assert status == 2, (says, told)
        assert says in told
        assert told.count("\n") == 1, told
        assert not (tmp_path / str(number) / "w").exists()


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
    source = sources.open_source(checkpoint)
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


@pytest.mark.parametrize(
    ("mode", "count"),
    [("stream", 2), *(pytest.param(mode, 16, marks=pytest.mark.long) for mode in ("stream", "cache"))],
)
def test_peak_memory_stays_within_the_plan_for_a_model_four_times_the_cap(tmp_path, mode, count):
    config = ModelConfig(
        n_layers=24, d_model=384, n_heads=4, n_kv_heads=1, head_dim=64, d_ff=896, vocab_size=512,
        n_experts=8, experts_per_token=2, max_positions=256,
    )  # fmt: skip
    hf.save(Transformer(config, rngs=nnx.Rngs(0)), tmp_path / "model")
    cap = (tmp_path / "model" / "model.safetensors").stat().st_size / 4 / GIB
    # Each pass reads every expert: two outputs fill every slot that many would.
    requests = asked(tmp_path / "requests.jsonl", count, **({"max_tokens": 2} if count == 2 else {}))
    args = command(
        tmp_path / "model",
        requests,
        tmp_path / "w",
        f"--mode={mode}",
        "--json",
        memory=f"--device_memory_gb={cap}",
    )
    got = subprocess.run(
        [sys.executable, "-c", MEASURE, *args[2:]],
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
