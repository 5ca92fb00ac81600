"""The wiring table of a pre-trained model: rows, resumption, needles, refusals."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from flax import nnx
from tokenizers import models, pre_tokenizers

from mixattn import ModelConfig, Transformer, hf, kv_bytes
from pallas_kernels import results
from train.experiments import local_text, needles, pretrained, served
from train.experiments.pretrained_setup import PretrainedExperiment, wired

CHARS = [chr(i) for i in range(10, 127)]
MODEL = ModelConfig(
    n_layers=5, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, vocab_size=len(CHARS), tied=True
)
WIRINGS = ("standard", "sinks", "every_fifth_full", "pairs")


@pytest.fixture(scope="module")
def tokenizer():
    """One token per character."""
    made = tokenizers.Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARS)}, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    return made


@pytest.fixture
def experiment(tokenizer, monkeypatch):
    """A tiny checkpoint and random text instead of the real ones."""
    model = Transformer(MODEL, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    monkeypatch.setattr(hf, "load", lambda path: (nnx.merge(graph, state), None))
    monkeypatch.setattr(hf, "load_tokenizer", lambda path: tokenizer)
    monkeypatch.setattr(local_text, "rows", _rows)
    return PretrainedExperiment(
        wirings=WIRINGS,
        window=80,
        sinks=2,
        row_tok=320,
        fit_rows=4,
        query_rows=2,
        held_out_rows=4,
        budget_mib=1,
        engine_rows=2,
        engine_tok=3,
        name="tiny",
    )


def _rows(tokenizer, part, count, length):
    return np.random.default_rng(len(part)).integers(0, len(CHARS), (count, length)).astype(np.int32)


def test_an_interrupted_sweep_ends_like_an_uninterrupted_one(experiment, tmp_path, monkeypatch):
    small = dataclasses.replace(experiment, wirings=("standard", "pairs"), engine_rows=0)
    pretrained.compare(small, tmp_path / "whole", tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "recover", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrained.compare(small, tmp_path / "broken", tmp_path / "b")
    assert (tmp_path / "broken" / "before" / "pairs-0.json").exists()
    pretrained.compare(small, tmp_path / "broken", tmp_path / "b")
    whole, resumed = (results.read_csv(tmp_path / folder / "tiny.csv") for folder in "ab")
    assert [_measured(row) for row in whole] == [_measured(row) for row in resumed]


def _measured(row):
    """Without what may differ: time, and the commit, should one be made meanwhile."""
    return {key: value for key, value in row.items() if key not in ("seconds", "commit")}


def _interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_the_table_has_a_row_per_wiring_with_its_memory_and_what_the_engine_says(experiment, tmp_path):
    pretrained.compare(experiment, tmp_path, tmp_path)
    rows = {row["wiring"]: row for row in results.read_csv(tmp_path / "tiny.csv")}
    assert tuple(rows) == WIRINGS
    for name, row in rows.items():
        assert int(row["kv_bytes_tok_4k"]) == kv_bytes(wired(experiment, MODEL, name), 4096) // 4096
    assert rows["standard"]["nats_before"] == rows["standard"]["nats_after"]
    assert rows["sinks"]["engine_tok_s"].startswith("refused: ")
    assert float(rows["pairs"]["engine_tok_s"]) > 0
    assert int(rows["pairs"]["concurrent_4k"]) > int(rows["standard"]["concurrent_4k"])
    assert (tmp_path / "tiny.svg").read_text().count("sinks") >= 1
    assert json.loads((tmp_path / "after" / "pairs-0.json").read_text())["tokens"] == 4 * 320


def test_every_fifth_layer_is_full_and_sinks_are_in_their_wiring_only(experiment):
    fifth = wired(experiment, MODEL, "every_fifth_full")
    assert [layer.slides for layer in fifth.layers] == [True] * 4 + [False]
    assert fifth.sinks == 0
    assert wired(experiment, MODEL, "sinks").sinks == 2


def test_rows_too_short_for_a_needle_beyond_the_window_are_refused():
    config = PretrainedExperiment(row_tok=255, window=64)
    with pytest.raises(ValueError, match="rows of 255 tokens hold no needle at 3 windows of 64"):
        config.check()


@pytest.mark.parametrize("distance", [40, 90])
def test_a_needle_is_told_and_asked_for_at_its_distance(tokenizer, distance):
    planted = needles.plant(tokenizer, _rows(tokenizer, "test", 6, 128), distance)
    assert planted.tokens_RT.shape == (6, 128)
    for row in planted.tokens_RT:
        answer = row[-planted.answer :]
        told = row[-planted.answer - distance : len(row) - distance]
        np.testing.assert_array_equal(told, answer)
        assert "".join(CHARS[i] for i in answer).isdigit()


def test_a_needle_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ValueError, match="does not fit rows of 64"):
        needles.plant(tokenizer, _rows(tokenizer, "test", 1, 64), 60)


def test_a_model_that_copies_recalls_all_and_one_that_does_not_none(tokenizer):
    planted = needles.plant(tokenizer, _rows(tokenizer, "test", 4, 128), 40)

    def share(shift):
        hidden = np.eye(len(CHARS))[(np.roll(planted.tokens_RT, -1, axis=1) + shift) % len(CHARS)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(needles.loss, "hidden_states", lambda model, rows: [(hidden, rows)])
            return needles.recalled(_Head(), planted)  # type: ignore[arg-type]

    assert share(0) == 1
    assert share(1) == 0


class _Head:
    def head(self, hidden):
        return hidden


def test_more_requests_fit_where_less_is_kept(experiment):
    counts = [
        served.concurrent(wired(experiment, MODEL, name), 2**20, 4096)
        for name in ("standard", "pairs", "every_fifth_full")
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
