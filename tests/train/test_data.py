"""Batches: every token once per epoch, the same in every run, divided between processes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import data


def windows(length, T, seed=0, **more):
    return data.Windows(np.arange(length, dtype=np.uint16), None, seq_len=T, seed=seed, **more)


def take(iterator, n):
    return [next(iterator)["tokens_BT"] for _ in range(n)]


@given(st.integers(9, 200), st.integers(1, 8), st.integers(0, 3))
def test_windows_of_an_epoch_do_not_overlap_and_miss_less_than_two_windows(length, T, epoch):
    cut = windows(length, T)
    rows = [cut.cut(i, epoch) for i in range(cut.count)]
    seen = np.concatenate([row["target_BT"] for row in rows])
    assert len(set(seen.tolist())) == len(seen)
    assert len(seen) > length - 1 - 2 * T
    for row in rows:
        assert row["tokens_BT"].shape == row["target_BT"].shape == (T,)
        np.testing.assert_array_equal(row["tokens_BT"] + 1, row["target_BT"])


def test_windows_start_at_another_offset_in_another_epoch():
    cut = windows(1000, 32)
    assert len({cut.offset(epoch) for epoch in range(20)}) > 5


def test_an_epoch_shows_each_window_once_and_the_next_in_another_order():
    cut = windows(33 * 12 + 40, 32)
    per_epoch = cut.count
    batches = data.batches(cut, 1)
    first, second = take(batches, per_epoch), take(batches, per_epoch)
    starts = [sorted(int(row[0, 0]) for row in epoch) for epoch in (first, second)]
    assert all(np.diff(s).min() == 32 for s in starts)
    assert [int(r[0, 0]) // 32 for r in first] != [int(r[0, 0]) // 32 for r in second]


def test_an_iterator_set_to_a_state_resumes_there():
    iterator = data.batches(windows(999, 8), 4)
    take(iterator, 5)
    state = iterator.get_state()
    want = take(iterator, 40)
    again = data.batches(windows(999, 8), 4)
    again.set_state(state)
    np.testing.assert_array_equal(take(again, 40), want)


def test_processes_divide_exactly_the_rows_of_one_process():
    whole = take(data.batches(windows(999, 8), 6), 9)
    shared = [take(data.batches(windows(999, 8), 6, process=p, processes=3), 9) for p in range(3)]
    for n, batch in enumerate(whole):
        rows = np.concatenate([shared[p][n] for p in range(3)])
        assert sorted(rows.tolist()) == sorted(batch.tolist())


def test_sequential_batches_weigh_every_target_once():
    cut = windows(8 * 7 + 3, 8)
    batches = list(data.sequential_batches(cut, 4))
    assert {b["tokens_BT"].shape for b in batches} == {(4, 8)}
    targets = [b["target_BT"][b["loss_mask_BT"] > 0] for b in batches]
    assert list(itertools.chain(*targets)) == list(range(1, 8 * 7 + 1))


def test_segments_number_the_documents_of_a_window():
    stream = np.array([0, 5, 6, 0, 7, 0, 0, 8, 9], dtype=np.uint16)
    cut = data.Windows(stream, None, seq_len=8, seed=0, document_mask=True)
    assert cut.cut(0, -1)["segment_BT"].tolist() == [1, 1, 1, 2, 2, 3, 4, 4]


def test_weights_of_targets_follow_their_tokens():
    loss_mask = np.array([1, 0, 0, 1, 1], dtype=np.uint8)
    cut = data.Windows(np.arange(5), loss_mask, seq_len=4, seed=0)
    assert cut.cut(0, -1)["loss_mask_BT"].tolist() == [0, 0, 1, 1]


def test_a_part_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="a window takes 9 tokens, this part of the corpus has 8"):
        windows(8, 8)
    with pytest.raises(ValueError, match="6 rows does not split over 4 processes"):
        data.batches(windows(99, 8), 6, process=0, processes=4)


def test_the_tokenize_command_is_resumable_and_its_folder_is_a_corpus(run_module, tmp_path):
    out = tmp_path / "tokens"
    for i in range(120):
        (tmp_path / f"f{i}.txt").write_text(f"file {i}\n" * 20)
    arguments = (f"--input={tmp_path}", f"--out={out}")
    done = run_module("train.data", "tokenize", *arguments, "--vocab_size=300")
    assert done.returncode == 0, done.stderr
    assert "train: " in done.stdout
    opened = data.prepare(data.DataConfig(path=str(out)), tmp_path / "unused", 300)
    assert opened.folder == out
    with pytest.raises(ValueError, match=r"uses \d+ token ids, model.vocab_size is 200"):
        data.prepare(data.DataConfig(path=str(out)), tmp_path / "unused", 200)
    other = run_module("train.data", "tokenize", *arguments, "--vocab_size=500")
    assert other.returncode == 2
    assert "was started for another request: vocab_size is 300 there and 500 here" in other.stderr
    wrong = run_module("train.data", "tokenise")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
