"""The offline serving command as a user meets it: real processes, real folders, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from flax import nnx

from mixattn import ModelConfig, Transformer, hf
from serving import report
from serving.fair import measure

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=tests/serving/tiny_serve.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What training leaves behind, made in a moment: a random model, a tokenizer, held-out documents."""
    folder = tmp_path_factory.mktemp("run")
    config = ModelConfig(
        n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=64,
        kv_wiring="0s_1", window=8,
    )  # fmt: skip
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0")
    )
    hf.save(Transformer(config, rngs=nnx.Rngs(0)), folder / "model", tokenizer)
    ids = np.random.default_rng(0).integers(0, 64, (4, 60)).tolist()
    lines = [json.dumps({"path": f"{i}.py", "ids": row}) + "\n" for i, row in enumerate(ids)]
    (folder / "heldout.jsonl").write_text("".join(lines))
    return folder


def test_a_run_leaves_logs_from_which_its_figures_can_be_computed_again(trained, run_module):
    done = run_module("serving.main", CONFIG, f"--workdir={trained}", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for policy in ("fcfs", "vtc"):
        again = measure.report(measure.read(trained / "serve" / f"{policy}.events.jsonl"))
        assert again.gap == told[policy]["gap"]
        assert again.finished == 16
        assert told[policy]["programs_at_end"] == told[policy]["programs_at_start"]
    assert told["vtc"]["gap"] <= told["vtc"]["bound"]
    assert told["fcfs"]["bound"] is None


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([CONFIG], "--workdir is missing"),
        ([CONFIG, "--workdir={empty}"], "heldout.jsonl does not exist; run python -m train.main"),
        ([CONFIG, "--workdir={empty}", "--config.serve.engine.max_slots=0"], "max_slots is 0"),
        ([CONFIG, "--workdir={empty}", "--config.serve.engin=1"], "engin not found"),
        (["--config=tests/serving/nothing.py", "--workdir={empty}"], "could not be read"),
    ],
)
def test_a_user_mistake_is_one_sentence_and_a_nonzero_code(tmp_path, run_module, args, sentence):
    done = run_module("serving.main", *(a.format(empty=tmp_path) for a in args))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_held_out_line_is_named_by_number(trained, tmp_path, run_module):
    (tmp_path / "heldout.jsonl").write_text('{"path": "a", "ids": [1]}\n{"ids": "no"}\n')
    done = run_module("serving.main", CONFIG, f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "heldout.jsonl line 2 is not a document" in done.stderr


def test_ctrl_c_leaves_no_summary_that_could_be_taken_for_whole(trained, tmp_path):
    for name in ("model", "heldout.jsonl"):
        (tmp_path / name).symlink_to(trained / name)
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.main", CONFIG, f"--workdir={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "serve").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "stopped by Ctrl-C" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "serve" / "summary.json").exists()
    assert not list((tmp_path / "serve").glob(".*"))


def test_the_report_escapes_what_a_model_wrote(trained):
    summary = json.loads((trained / "serve" / "summary.json").read_text())
    summary["completions"] = [{"client": "x", "prompt": "<b>", "output": "<script>alert(1)</script>"}]
    train = {
        "parameters": 1, "config": {"model": {"kv_wiring": "0s_1", "window": 8}}, "gate": "bigram",
        "validation_nats": 1.0, "validation_bits_per_byte": 1.0, "steps": [2], "tokens": 3,
        "train_seconds": 1.0, "bars_nats": {"unigram": 3.0, "bigram": 2.0}, "environment": {"jax": "x"},
    }  # fmt: skip
    metrics = [{"step": "1", "loss": "2.5", "validation": "2.4"}]
    page = report.page(train, summary, metrics)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", ""), "one file, nothing fetched"


def test_the_report_names_what_is_missing(tmp_path, run_module):
    done = run_module("serving.report", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "summary.json does not exist; run train.main and serving.main" in done.stderr
