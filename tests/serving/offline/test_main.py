"""The offline serving command as a user meets it: real processes, real folders, bad input."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx

from mixattn import ModelConfig, Transformer, generate, hf
from serving.fair import metrics
from serving.offline import report
from tests import forked

CONFIG = "--config=tests/serving/offline/tiny_serve.py"


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
        again = metrics.report(metrics.read(trained / "serve" / f"{policy}.events.jsonl"))
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
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = forked.Process("serving.main", CONFIG, f"--workdir={tmp_path}", **pipes)
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
    done = run_module("serving.offline.report", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "summary.json does not exist; run train.main and serving.main" in done.stderr


def ask_file(folder: Path, lines: list[dict | str]) -> Path:
    path = folder / "asks.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_a_file_of_requests_is_answered_and_continued_without_doing_anything_twice(
    trained, run_module, tmp_path
):
    infos = [{"prompt_ids": [i, i + 1, 5], "max_tokens": 4 + i, "n": 1 + i // 5} for i in range(6)]
    path = ask_file(tmp_path, [*infos, {"prompt": "w1 w2 w3", "max_tokens": 3, "id": "text"}])
    out = tmp_path / "o"
    args = [CONFIG, f"--model={trained}/model", f"--requests={path}", f"--out={out}", "--json"]
    done = run_module("serving.main", *args)
    assert done.returncode == 0, done.stderr
    first = out.read_text()
    answers = [json.loads(line) for line in first.splitlines()]
    assert sorted(a["id"] for a in answers) == sorted(["1", "2", "3", "4", "5", "6", "6", "text"])
    by_id = {a["id"]: a for a in answers}
    assert len(by_id["3"]["output_ids"]) == 6
    assert by_id["text"]["text"]
    # Stopped in the middle of a line: the torn line is done again, and the request that has half its outputs.
    lines = first.splitlines(keepends=True)
    torn = [i for i, a in enumerate(answers) if a["id"] == "6"][1]
    out.write_text("".join(lines[:torn]) + lines[torn][:20])
    again = run_module("serving.main", *args)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout.splitlines()[-1])
    kept = [line for line in lines[:torn] if json.loads(line)["id"] != "6"]
    assert told["kept"] == len(kept)
    assert out.read_text().startswith("".join(kept))

    def outputs(text):
        return sorted((a["id"], a["index"], a["output_ids"]) for a in map(json.loads, text.splitlines()))

    assert outputs(out.read_text()) == outputs(first), "each exactly once"


def test_what_a_checkpoint_calls_the_end_of_a_text_ends_a_request(trained, run_module, tmp_path):
    model, _ = hf.load(trained / "model")
    [free] = generate(model, [[1, 2, 5]], max_new_tokens=8)
    end = free[3]
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    info = {"prompt_ids": [1, 2, 5], "max_tokens": 8}
    path = ask_file(tmp_path, [info, info | {"ignore_eos": True}])
    done = run_module(
        "serving.main", CONFIG, f"--workdir={tmp_path}", f"--requests={path}", f"--out={path}.o"
    )
    assert done.returncode == 0, done.stderr
    answers = {a["id"]: a for a in map(json.loads, Path(f"{path}.o").read_text().splitlines())}
    assert answers["1"]["output_ids"] == free[: free.index(end) + 1]
    assert (answers["1"]["finish_reason"], answers["1"]["stop"]) == ("stop", end)
    assert answers["2"]["output_ids"] == free


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{oops"], "bad requests: line 1"),
        ([{"prompt_ids": [1]}, {"prompt_ids": [1], "top": 3}], "line 2: has unknown fields top"),
        ([{"prompt_ids": [1], "max_tokens": 0}], "line 1: sampling.max_tokens is 0"),
        ([{"prompt": 3}], "line 1: prompt must be text"),
        ([{"prompt_ids": [1], "id": "a"}, {"prompt_ids": [1], "id": "a"}], "asks for id 'a' twice"),
    ],
)
def test_a_bad_line_is_named_by_number(lines, sentence, tmp_path):
    from serving.offline.requests_file import read

    with pytest.raises(ValueError, match=sentence):
        read(ask_file(tmp_path, lines), lambda text: [1])


def test_a_request_that_can_never_be_served_is_an_error_of_its_line(trained, run_module, tmp_path):
    """Found out before the model is loaded; the other lines are answered, and the code is not 0."""
    lines = [
        {"prompt_ids": [1], "max_tokens": 3, "metadata": {"row": 7}},
        {"prompt_ids": [1] * 60, "max_tokens": 4},
        {"prompt_ids": [64]},
        "{oops",
        {"id": "\ud800x", "prompt_ids": [1]},
        {"prompt_ids": [2], "logprobs": 3},
        {"prompt": "w1 w2", "max_tokens": 2, "id": "1"},
        {"prompt": "w1 w2", "max_tokens": 2},
    ]
    path = ask_file(tmp_path, lines)
    args = [CONFIG, f"--model={trained}/model", f"--requests={path}", f"--out={tmp_path}/o"]
    done = run_module("serving.main", *args)
    assert done.returncode == 1
    assert "6 of 8 requests have no answer: line 2: request '2' of 'default' needs 64 tokens" in done.stderr
    assert done.stderr.count("\n") == 1
    answers = {a["id"]: a for a in map(json.loads, (tmp_path / "o").read_text().splitlines())}
    assert len(answers["1"]["output_ids"]) == 3
    assert (answers["1"]["prompt_ids"], answers["1"]["metadata"]) == ([1], {"row": 7})
    assert answers["8"]["prompt"] == "w1 w2"
    errors = {a["line"]: a["error"] for a in answers.values() if a["finish_reason"] == "refused"}
    assert "serves at most 48" in errors[2]
    assert "names token 64 of a vocabulary of 64" in errors[3]
    assert "Expecting property name" in errors[4]
    assert "surrogate pair" in errors[5]
    assert "asks for 3 logprobs" in errors[6]
    assert "asks for id '1' twice, first in line 1" in errors[7]
    # Strict: nothing is answered at all.
    strict = run_module("serving.main", *args[:-1], f"--out={tmp_path}/strict", "--strict")
    assert strict.returncode == 2
    assert "bad requests: line 2: " in strict.stderr
    assert not (tmp_path / "strict").exists()


def test_answers_to_other_questions_are_not_kept(trained, run_module, tmp_path):
    """A line inserted at the top gives every line another number; another sampling, another answer."""
    asks = [{"prompt_ids": [i, 5], "max_tokens": 4} for i in range(3)]
    out = tmp_path / "o"
    args = [CONFIG, f"--model={trained}/model", f"--out={out}", "--json"]

    def run(lines) -> tuple[dict, dict]:
        done = run_module("serving.main", *args, f"--requests={ask_file(tmp_path, lines)}")
        assert done.returncode == 0, done.stderr
        answers = {a["id"]: a["output_ids"] for a in map(json.loads, out.read_text().splitlines())}
        return json.loads(done.stdout.splitlines()[-1]), answers

    first, before = run(asks)
    assert (first["answered"], first["kept"]) == (3, 0)
    again, same = run(asks)
    assert (again["answered"], again["kept"], same) == (0, 3, before)
    moved, shifted = run([{"prompt_ids": [9, 9], "max_tokens": 4}, *asks])
    assert (moved["answered"], moved["kept"], moved["changed"]) == (4, 0, 3)
    assert [shifted[str(i + 2)] for i in range(3)] == [before[str(i + 1)] for i in range(3)]
    hotter, _ = run([{"prompt_ids": [9, 9], "max_tokens": 4, "seed": 3, "temperature": 1.0}, *asks])
    assert (hotter["answered"], hotter["kept"], hotter["changed"]) == (1, 3, 1)
    other = tmp_path / "other"
    model, _ = hf.load(trained / "model")
    graphdef, params = nnx.split(model)
    hf.save(nnx.merge(graphdef, jax.tree.map(lambda x: x * 1.5, params)), other)
    done = run_module(
        "serving.main", CONFIG, f"--model={other}", f"--out={out}", f"--requests={tmp_path}/asks.jsonl"
    )
    assert done.returncode == 2
    assert "holds answers of another model" in done.stderr


def test_answers_that_failed_are_counted_said_and_tried_again(trained, run_module, tmp_path):
    broken = tmp_path / "model"
    model, _ = hf.load(trained / "model")
    graphdef, params = nnx.split(model)
    hf.save(nnx.merge(graphdef, jax.tree.map(lambda x: x * np.float32("nan"), params)), broken)
    path = ask_file(tmp_path, [{"prompt_ids": [1, 2], "max_tokens": 3}])
    args = [CONFIG, f"--model={broken}", f"--requests={path}", f"--out={tmp_path}/o", "--json"]
    done = run_module("serving.main", *args)
    assert done.returncode == 1
    assert "1 of 1 requests have no answer: line 1: the model's logits were not finite" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["errors"] == 1
    shutil.copytree(trained / "model", broken, dirs_exist_ok=True)
    again = run_module("serving.main", *args)
    assert again.returncode == 0, again.stderr
    [answer] = map(json.loads, (tmp_path / "o").read_text().splitlines())
    assert (answer["finish_reason"], len(answer["output_ids"])) == ("length", 3)


def test_a_training_run_is_served_without_a_config_and_with_what_requests_ask_for(
    trained, run_module, tmp_path
):
    """Log-probabilities over all tokens, with a stop token that may not come yet: no infinity in JSON."""
    ask = {
        "prompt_ids": [1, 2],
        "max_tokens": 4,
        "min_tokens": 3,
        "stop_ids": [5],
        "logprobs": 64,
        "top_p": 0,
    }
    path = ask_file(tmp_path, [ask, {"prompt_ids": [1] * 190, "max_tokens": 9}])
    args = [f"--workdir={trained}", f"--requests={path}", f"--out={tmp_path}/o", "--kv_memory=4MiB"]
    done = run_module("serving.main", *args)
    assert done.returncode == 0, done.stderr

    def refuse(constant):
        raise ValueError(constant)

    answers = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "o").read_text().splitlines()]
    [first] = [a for a in answers if a["id"] == "1"]
    assert [len(top) for _, _, top in first["logprobs"]] == [63, 63, 63, 64][: len(first["logprobs"])]


def test_the_clients_are_served_with_slabs_and_gaps_stay_under_their_bounds(trained, run_module):
    keep = ("--config.serve.engine.keep.slab_tok=8", "--config.serve.engine.keep.full_decode=False")
    done = run_module("serving.main", CONFIG, f"--workdir={trained}", *keep, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["vtc"]["gap"] <= told["vtc"]["bound"]
    assert told["vtc"]["finished"] == 16


def test_a_line_whose_budget_no_slab_holds_is_an_error_of_its_line(trained, run_module, tmp_path):
    ids = list(range(1, 31))
    asks = ask_file(
        tmp_path,
        [
            {"prompt_ids": ids, "max_tokens": 4, "keep": {"budget": 6}},
            {"prompt_ids": ids, "max_tokens": 4, "keep": {"budget": 20}},
            {"prompt_ids": ids, "max_tokens": 4, "keep": {"scorer": "tova"}},
            {"prompt_ids": ids, "max_tokens": 4, "keep": {"share": 1}},
        ],
    )
    out = tmp_path / "answers.jsonl"
    flags = (f"--requests={asks}", f"--out={out}", "--config.serve.engine.keep.slab_tok=8")
    done = run_module("serving.main", CONFIG, f"--workdir={trained}", *flags)
    assert done.returncode == 1
    errors = {a["id"]: a.get("error") for a in map(json.loads, out.read_text().splitlines())}
    assert [sorted(errors)[0], errors["1"]] == ["1", None]
    assert "asks for 20 keys a layer, a slab holds 8" in errors["2"]
    assert "asks for the scorer 'tova'; compiled in are h2o" in errors["3"]
    assert any("keep has the field 'share'" in str(why) for why in errors.values())
