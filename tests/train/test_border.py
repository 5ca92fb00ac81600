"""What comes into training from outside is right or refused in one sentence: data, configs, resumes."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mixattn import hf
from mixattn.tools import config_help, files
from tests.train import tiny
from train import corpus, data, prepare, progress, run, text_files, token_files, tokens
from train.corpus import Corpus
from train.experiment import Stage, TrainingExperiment
from train.recipe import recipe
from train.resume import ChangedPast, allowed_changes

LINE = "the quick brown fox jumps over the lazy dog\n"


def short(path, **more):
    """A run of four steps on own text."""
    config = tiny.get_config()
    config.data = data.DataConfig(path=str(path), **more)
    config.train.stages = [Stage(name="tiny", steps=4, batch_size=2, seq_len=16)]
    config.train.evaluate_every, config.train.evaluate_windows = 2, 2
    config.checkpoints.every = 2
    return config


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(60):
        (folder / f"f{i:02}.txt").write_text(LINE * 3)
    return folder


# ---- what is read ---------------------------------------------------------------------------------
def test_every_format_gives_its_text_and_every_file_left_out_is_named(tmp_path):
    (tmp_path / "plain.txt").write_text("plain\r\ntext\n", newline="")
    (tmp_path / "mark.md").write_bytes(b"\xef\xbb\xbfwith a mark")
    (tmp_path / "code.py.gz").write_bytes(gzip.compress(b"x = 1\n"))
    (tmp_path / "lines.jsonl").write_text('{"body": "a\\u2028b"}\n\n{"body": "c\x85d"}\n', encoding="utf-8")
    with (
        pa.OSFile(str(tmp_path / "more.jsonl.zst"), "wb") as raw,
        pa.CompressedOutputStream(raw, "zstd") as out,
    ):
        out.write(b'{"body": "packed"}\n{"prompt": "1+1=", "answer": "2"}\n')
    parquet.write_table(pa.table({"body": ["row 0", "row 1"], "other": [1, 2]}), tmp_path / "table.parquet")
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "wide.txt").write_text("wide", encoding="utf-16")
    (tmp_path / "sheet.csv").write_text("a,b\n")
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    (tmp_path / "README").write_text("no suffix")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    left_out: list[text_files.LeftOut] = []
    found = {d.name: d.text for d in corpus.documents(str(tmp_path), text_field="body", left_out=left_out)}
    assert found == {
        "plain.txt#0": "plain\ntext\n",
        "mark.md#0": "with a mark",
        "code.py.gz#0": "x = 1\n",
        "lines.jsonl#0": "a\u2028b",
        "lines.jsonl#2": "c\x85d",
        "more.jsonl.zst#0": "packed",
        "more.jsonl.zst#1": "1+1=2",
        "table.parquet#0": "row 0",
        "table.parquet#1": "row 1",
    }
    reasons = dict(left_out)
    assert sorted(reasons) == [".git/", "README", "latin.txt", "sheet.csv", "torn.txt.gz", "wide.txt"]
    assert reasons["latin.txt"] == "is not UTF-8: byte 0xe9 at 1"
    assert "UTF-16" in reasons["wide.txt"]
    assert ".csv" in reasons["sheet.csv"]
    assert "cannot be read" in reasons["torn.txt.gz"]


def test_records_without_text_are_no_documents_and_are_counted(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"text": ""}\n{"text": "a"}\n{"prompt": "", "answer": ""}\n')
    left_out: list[text_files.LeftOut] = []
    found = [d.name for d in corpus.documents(str(tmp_path), left_out=left_out)]
    assert found == ["q.jsonl#1"]
    assert left_out == [("q.jsonl", "has 2 records without text, which are left out")]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("another")
    assert [d.text for d in corpus.documents(str(tmp_path / "a[1].txt"))] == ["brackets"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_file_in_another_unicode_encoding_is_named_by_it(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("\ufefftext".encode(encoding))
    (tmp_path / "b.txt").write_text("b")
    left_out: list[text_files.LeftOut] = []
    assert [d.text for d in corpus.documents(str(tmp_path), left_out=left_out)] == ["b"]
    name = encoding[:6].upper()
    assert left_out == [("a.txt", f"is {name}, not UTF-8 (iconv -f {name} -t UTF-8 converts it)")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": null}', "'text' is null, no text"),
        (b'{"text": 3}', "'text' is 3, no text"),
        (b'{"text": "\\ud800x"}', "half of a surrogate pair"),
        (b'{"text": "\xff"}', "is not UTF-8: byte 0xff at 10"),
        (b'{"body": "x"}', "'text' is missing"),
        (b'{"prompt": "a", "answer": []}', "'answer' is [], no text"),
        (b"[" * 100_000, "line 2 is not"),
        (b"3", "it is a int"),
    ],
)
def test_a_damaged_record_names_file_line_and_reason(tmp_path, line, words):
    (tmp_path / "q.jsonl").write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"q\.jsonl line 2[ :]") as why:
        list(corpus.documents(str(tmp_path)))
    assert words in str(why.value)


def test_files_left_out_are_told_and_kept_in_the_manifest(texts, tmp_path):
    (texts / "sheet.csv").write_text("a,b\n")
    (texts / "latin.txt").write_bytes(b"\xe9t\xe9")
    said: list[str] = []
    done = tokens.write(str(texts), tmp_path / "out", vocab_size=300, report=said.append)
    assert done.manifest["left_out"]["files"] == 2
    (words,) = [line for line in said if line.startswith("left out 2 files")]
    assert "latin.txt is not UTF-8: byte 0xe9 at 0" in words
    assert "sheet.csv has the suffix .csv" in words


# ---- how it is split ------------------------------------------------------------------------------
def parts_of(folder, **options):
    return {d.name: part for part, d in Corpus(str(folder), **options).documents()}


def test_no_file_moves_when_the_hundredth_is_added(tmp_path):
    for i in range(99):
        (tmp_path / f"f{i}.txt").write_text(LINE)
    before = parts_of(tmp_path)
    (tmp_path / "one_more.txt").write_text(LINE)
    after = parts_of(tmp_path)
    assert len(after) == 100
    assert {name: after[name] for name in before} == before


def test_shares_and_whole_files_are_options_of_the_split(texts):
    counted = list(parts_of(texts, validation_share=0.5, heldout_share=0.0).values())
    assert 18 <= counted.count("validation") <= 42
    assert counted.count("heldout") == 0
    (texts / "long.txt").write_text(LINE * 9000)
    whole = {part for name, part in parts_of(texts, split_by="file").items() if name.startswith("long")}
    assert len(whole) == 1
    assert len({p for n, p in parts_of(texts).items() if n.startswith("long")}) == 3


def test_an_own_validation_set_is_all_that_validates_and_does_not_train(texts):
    found = parts_of(texts, validation_path=str(texts / "f0*.txt"))
    assert {name for name, part in found.items() if part == "validation"} == {
        f"validation/f0{i}.txt#0" for i in range(10)
    }
    assert not [name for name in found if name.startswith("f0")]


def test_seven_documents_are_refused_before_anything_is_tokenized(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(7):
        (tmp_path / "texts" / f"f{i}.txt").write_text(LINE * 300)
    with pytest.raises(ValueError, match=r"7 documents and none .* validation part .*data\.validation_share"):
        run.run(short(tmp_path / "texts"), tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_a_validation_part_shorter_than_a_window_is_refused_before_the_first_step(texts, tmp_path):
    config = short(texts)
    config.train.stages[0].seq_len = 500
    with pytest.raises(ValueError, match=r"takes windows of 501 tokens and the validation part .* has \d+;"):
        run.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()
    run.run(short(texts), tmp_path / "run")  # the way on: the same folder with a smaller window


# ---- token files ----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_file_of_token_ids_trains_with_the_tokenizer_that_made_it(texts, tmp_path, dtype):
    source = tokens.write(str(texts), tmp_path / "source", vocab_size=300)
    np.asarray(source.train).astype(token_files.DTYPES[dtype]).tofile(tmp_path / "ids.bin")
    config = data.DataConfig(
        path=str(tmp_path / "ids.bin"),
        tokenizer=str(tmp_path / "source"),
        token_dtype=dtype,
        validation_share=0.25,
    )
    opened = data.prepare(config, tmp_path / "out", 300)
    np.testing.assert_array_equal(np.concatenate([opened.train, opened.validation]), source.train)
    assert len(opened.validation) == round(len(source.train) * 0.25)
    assert 1 < opened.bytes_per_token < 20


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"\1\0\2", {}, "3 bytes, which are no whole number of uint16"),
        (b"", {}, "0 bytes"),
        (b"\xff\xff" * 9, {}, "token id 65535 at 0, the tokenizer has"),
        (b"\1\0" * 9, {"tokenizer": ""}, "data.tokenizer must name"),
    ],
)
def test_a_file_of_token_ids_that_cannot_be_is_refused(texts, tmp_path, content, options, words):
    tokens.write(str(texts), tmp_path / "source", vocab_size=300)
    (tmp_path / "ids.bin").write_bytes(content)
    config = data.DataConfig(
        path=str(tmp_path / "ids.bin"), **{"tokenizer": str(tmp_path / "source"), **options}
    )
    with pytest.raises(ValueError, match=r"ids\.bin") as why:
        data.prepare(config, tmp_path / "out", 300)
    assert words in str(why.value)


# ---- tokenizers -----------------------------------------------------------------------------------
def test_no_text_that_a_tokenizer_is_trained_on_has_a_run_of_more_than_256_characters():
    text = "ACGT" * 25_000 + " " * 600 + "a normal line\n"
    cut = list(tokens.without_long_runs(text))
    assert "".join(cut) == text
    assert max(len(word) for piece in cut for word in piece.split(" ")) <= 256
    assert list(tokens.without_long_runs(LINE * 50)) == [LINE * 50]
    trained = tokens.train_tokenizer(cut, 300)
    assert trained.decode(trained.encode(text).ids) == text


# ---- starts and resumes ---------------------------------------------------------------------------
def test_a_start_that_fails_claims_nothing(texts, tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a file"):
        run.run(short(tmp_path / "textz"), tmp_path / "run")
    wrong = short(texts)
    wrong.model.vocab_size = 280
    wrong.mesh.data = 7
    with pytest.raises(ValueError, match="does not fit 1 devices"):  # after tokenizing
        run.run(wrong, tmp_path / "run")
    summary = run.run(short(texts), tmp_path / "run")
    assert summary["corpus"]["vocab_size"] > 256


def test_a_run_trains_longer_and_is_evaluated_otherwise_but_keeps_its_past(texts, tmp_path):
    run.run(short(texts), tmp_path / "run")
    before = progress.read(tmp_path / "run" / "metrics.csv")
    longer = short(texts)
    longer.train.stages[0].steps = 8
    longer.train.evaluate_every, longer.train.must_beat = 1, "none"
    longer.train.compute.accumulate, longer.train.compute.remat = 2, "block"
    summary = run.run(longer, tmp_path / "run")
    assert summary["steps"] == [8]
    rows = progress.read(tmp_path / "run" / "metrics.csv")
    assert rows[:4] == before
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    (change,) = files.read_json(tmp_path / "run" / "config_changes.json")
    assert change["after_step"] == 4
    assert {c["name"] for c in change["changes"]} == {
        "train.stages.0.steps",
        "train.evaluate_every",
        "train.compute.accumulate",
        "train.compute.remat",
    }
    with pytest.raises(ValueError, match="has been trained for 8 steps and cannot be cut to 4"):
        run.run(short(texts), tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "8").rename(tmp_path / "run" / "checkpoints" / "99")
    with pytest.raises(ValueError, match="checkpoint of step 99, but the run has 8 steps"):
        run.run(longer, tmp_path / "run")
    other = short(texts)
    other.train.seed = 9
    with pytest.raises(ValueError, match=r"train\.seed is 0 there and 9 here"):
        run.run(other, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("train.stages.0.steps", 9, False),  # has ended
        ("train.stages.1.steps", 9, True),  # is running
        ("train.stages.1.batch_size", 9, False),
        ("train.stages.2.batch_size", 9, True),  # has not begun
        ("train.evaluate_windows", 9, True),
        ("train.optimizer.learning_rate", 9.0, False),
        ("train.compute.dtype", "bfloat16", False),
        ("model.window", 9, False),
        ("data.validation_share", 0.5, False),
    ],
)
def test_a_resume_may_change_what_its_past_does_not_depend_on(name, value, allowed):
    config = TrainingExperiment()
    config.train.stages = [Stage(name=n, steps=5) for n in "abc"]
    before, now = recipe(config), recipe(config)
    *path, last = [int(key) if key.isdigit() else key for key in name.split(".")]
    node = now
    for key in path:
        node = node[key]
    node[last] = value
    if allowed:
        assert [change.name for change in allowed_changes(before, now, [5, 3, 0])] == [name]
    else:
        with pytest.raises(ChangedPast, match=rf"{name} is .* there and {value!r} here"):
            allowed_changes(before, now, [5, 3, 0])


def test_master_weights_and_moments_are_float32_whatever_the_model_is_stored_in(texts, tmp_path):
    config = short(texts)
    config.model.dtype = "bfloat16"
    compiled = prepare.compile_stage(config, config.train.stages[0], prepare.mesh.make(config.mesh))
    state = compiled.init_state(prepare.initial_params(config))
    kinds = {x.dtype for x in [*state.params.values(), *_floats(state.opt_state)]}
    assert kinds == {jnp.dtype("float32")}
    run.run(config, tmp_path / "run")
    model, stored = hf.load(tmp_path / "run" / "model")
    assert stored.dtype == "bfloat16"
    further = short(texts)
    further.train.init_from = str(tmp_path / "run" / "model")
    assert {x.dtype for x in prepare.initial_params(further).values()} == {jnp.dtype("float32")}
    config.train.compute.master_dtype = "bfloat16"  # who wants it, says so
    assert {x.dtype for x in prepare.initial_params(config).values()} == {jnp.dtype("bfloat16")}
    del model


def _floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"1,2\n", b"step,loss\nx,1\n", b"step,loss\n1,nan\n"])
def test_a_damaged_metrics_file_is_one_sentence(tmp_path, damage):
    (tmp_path / "metrics.csv").write_bytes(damage + b"\n" * (damage[-1:] != b"\n"))
    if damage == b"1,2\n":
        (tmp_path / "metrics.csv").write_bytes(damage + b"3\n")
    with pytest.raises(ValueError, match=r"metrics\.csv .*damaged.*move"):
        progress.read(tmp_path / "metrics.csv")


# ---- help -----------------------------------------------------------------------------------------
def test_every_field_of_a_training_config_has_a_meaning():
    assert [f.path for f in config_help.fields(TrainingExperiment()) if not f.meaning] == []


def test_help_lists_every_field_of_the_config_and_ends_with_0(run_module):
    done = run_module("train.main", "--config=configs/own_text.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--config.train.stages[0].steps=300" in done.stdout
    assert "share of the documents that validate" in done.stdout
    assert "--workdir: Folder" in done.stdout
    assert run_module("train.data", "tokenize", "--help").returncode == 0


def test_a_list_is_indexed_with_dots_or_brackets(run_module, tmp_path):
    done = run_module(
        "train.main",
        "--config=tests/train/tiny.py",
        f"--workdir={tmp_path}",
        "--config.train.stages.0.steps=0",
    )
    assert done.returncode == 2
    assert "none of steps, tokens, seconds" in done.stderr
    bad = run_module(
        "train.main", "--config=tests/train/tiny.py", "--config.train.stages[0.steps=1", "--help"
    )
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
