"""`python -m train.main`: the files of a finished run, refused arguments and their error messages."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from mixattn import Transformer, hf
from mixattn.tools import cli
from tests import forked
from tests.train import tiny
from train import corpus, mesh, run, tokens
from train.experiment import Stage
from train.run_directory import claimed

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = "--config=tests/train/tiny.py"
SHORT = "--config.train.stages[0].steps=4"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of four steps."""
    workdir = tmp_path_factory.mktemp("trained")
    done = forked.run("train.main", CONFIG, SHORT, "--config.checkpoints.every=2", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def refused(done, *words, code=2):
    assert done.returncode == code, done.stdout + done.stderr
    (said,) = re.findall(r"^error: .*", done.stderr, re.MULTILINE)
    assert done.stderr.rstrip().endswith(said)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in said, said


def test_a_run_writes_a_model_prompts_and_a_summary(trained):
    workdir, out = trained
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["validation_nats"] > 0
    assert set(summary["bars_nats"]) == {"unigram", "bigram", "trigram"}
    assert summary["steps"] == [4]
    assert len(summary["curve"]) == 4
    assert "jax " in summary["environment"]["versions"]
    assert f"validation loss {summary['validation_nats']:.3f} nats" in out
    _, config = hf.load(workdir / "model")
    assert config.kv_wiring == "0s_1"
    tokenizer = hf.load_tokenizer(workdir / "model")
    end = tokenizer.token_to_id(tokens.SEPARATOR)
    assert hf.special_ids(workdir / "model") == (end, (end,), end)
    documents = [json.loads(line) for line in (workdir / "heldout.jsonl").read_text().splitlines()]
    assert len(documents) == summary["corpus"]["parts"]["heldout"]["documents"]
    name, ids = documents[0]["path"], documents[0]["ids"]
    assert corpus.part(name) == "heldout"
    text = next(d.text for d in corpus.documents("") if d.name == name)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.train.speed=3", ["speed"]),
        ("--config.model.kv_wiring=0_2", ["layer 1 reads layer 2"]),
        ("--config.data.path=/nowhere/at/all", ["/nowhere/at/all", "neither a folder nor a file"]),
    ],
    ids=["unknown field", "wrong wiring", "missing corpus"],
)
def test_a_wrong_argument_is_refused_in_one_sentence(run_module, tmp_path, argument, words):
    refused(run_module("train.main", CONFIG, f"--workdir={tmp_path / 'run'}", argument), *words)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.must_beat", "fourgram", "train.must_beat is 'fourgram'"),
        ("train.optimizer.name", "sgd", "sgd.* adamw, lion, muon"),
        ("train.optimizer.schedule", "steps", "'steps'.* cosine"),
        ("train.optimizer.learning_rate", -1.0, "learning_rate is -1.0"),
        ("train.compute.accumulate", 3, "2 rows do not split into 3 micro-batches"),
        ("train.compute.dtype", "int8", "int8"),
        ("train.compute.remat", "all", "'all'.* everything"),
        ("train.stages", [], "nothing to train"),
        ("train.stages", [Stage(steps=1, tokens=1)], r"\['steps', 'tokens'\].*exactly one"),
        ("train.stages", [Stage()], "none of steps"),
        ("train.stages", [Stage(steps=1, trainable="heads")], "'heads'"),
        ("model.quantize", "int8", "model.quantize is 'int8'.*convert --quantize=int8"),
        ("checkpoints.every", 0, "every 0 steps"),
        ("mesh.tensor", 0, "axis without devices"),
        ("data.limit_bytes", -1, "-1"),
    ],
)
def test_every_field_that_can_be_wrong_is_checked(path, value, words):
    config = tiny.get_config()
    *parents, name = path.split(".")
    node = config
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, name, value)
    with pytest.raises(ValueError, match=words):
        cli.check_tree(config)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        mesh.make(mesh.MeshShape(data=3))
    with pytest.raises(ValueError, match="needs --coordinator"):
        mesh.join("", 2, 0)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xff"], ids=["empty", "binary"])
def test_a_corpus_without_text_is_refused_and_leaves_no_tokens(tmp_path, content):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(content)
    config = tiny.get_config()
    config.data.path = str(tmp_path / "texts")
    with pytest.raises(ValueError, match="the corpus holds no text"):
        run.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "data" / "manifest.json").exists()


def test_the_workdir_of_another_config_is_refused_and_left_alone(run_module, trained):
    workdir, _ = trained
    before = sorted(p.name for p in workdir.rglob("*"))
    done = run_module("train.main", CONFIG, SHORT, f"--workdir={workdir}", "--config.model.window=9")
    refused(done, "model.window is 8 there and 9 here")
    assert sorted(p.name for p in workdir.rglob("*")) == before


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), claimed(tmp_path / "file" / "run", tiny.get_config()):
        pass


def test_a_workdir_in_which_another_process_trains_is_refused(tmp_path):
    with (
        claimed(tmp_path, tiny.get_config()),
        pytest.raises(ValueError, match="another process is training in"),
        claimed(tmp_path, tiny.get_config()),
    ):
        pass


@pytest.mark.parametrize("kib", [64, 4096], ids=["tokens", "checkpoint"])
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing_half_written(trained, tmp_path, kib):
    # A limit on the size of a file fails like a full disk: the write that crosses it raises OSError.
    workdir = tmp_path / "run"
    wide = f"{SHORT} --config.model.d_ff=65536"  # its checkpoint is the largest file
    command = f"ulimit -f {kib}; exec {sys.executable} -m train.main {CONFIG} {wide} --workdir={workdir}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    refused(done)
    assert not (workdir / "summary.json").exists()
    assert not (workdir / "model").exists()
    assert tokens.is_whole(workdir / "data") is (kib > 64)
    steps = workdir / "checkpoints"
    assert not steps.exists() or not [p for p in steps.iterdir() if p.name.isdigit()]


def test_a_truncated_checkpoint_is_refused_and_the_one_before_taken_only_when_named(
    run_module, trained, tmp_path
):
    source, _ = trained
    workdir = tmp_path / "run"
    shutil.copytree(source, workdir)
    (workdir / "summary.json").unlink()
    for file in (workdir / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    done = run_module("train.main", CONFIG, SHORT, f"--workdir={workdir}")
    refused(done, "the checkpoint of step 4", "cannot be used", "--step=2 resumes from the one before")
    assert (workdir / "checkpoints" / "4").exists()
    done = run_module("train.main", CONFIG, SHORT, f"--workdir={workdir}", "--step=2")
    assert done.returncode == 0, done.stderr
    one, other = ((w / "model" / "model.safetensors").read_bytes() for w in (source, workdir))
    assert one == other


def test_a_model_that_does_not_beat_its_baseline_is_exported_and_the_command_fails(run_module, tmp_path):
    done = run_module("train.main", CONFIG, SHORT, f"--workdir={tmp_path}", "--config.train.must_beat=bigram")
    refused(done, "does not beat its baseline", "bigram")
    assert json.loads((tmp_path / "summary.json").read_text())["passed"] is False


def test_an_initial_model_without_a_tokenizer_is_refused(run_module, tmp_path):
    model = Transformer(tiny.get_config().model, rngs=nnx.Rngs(0))
    hf.save(model, tmp_path / "start")
    start = f"--config.train.init_from={tmp_path}/start"
    done = run_module("train.main", CONFIG, SHORT, f"--workdir={tmp_path}/run", start)
    refused(done, f"{tmp_path}/start has no tokenizer.json")


def test_a_tokenizer_is_named_by_its_folder_too(run_module, trained, tmp_path):
    """The model that comes out has the end token of the tokenizer that went in."""
    workdir, _ = trained
    given = f"--config.data.tokenizer={workdir}/model"
    done = run_module("train.main", CONFIG, SHORT, f"--workdir={tmp_path}/run", given)
    assert done.returncode == 0, done.stderr
    assert hf.special_ids(tmp_path / "run" / "model").eos == hf.special_ids(workdir / "model").eos
