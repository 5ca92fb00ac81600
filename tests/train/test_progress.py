"""Metrics as TensorBoard events: the columns of metrics.csv; steps that come again replace the old ones."""

import struct
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tests.train import tiny
from train import progress, run


def events(folder):
    """Every event of every file of the folder, oldest first."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder, tag):
    return {e.step: v.simple_value for e in events(folder) for v in e.summary.value if v.tag == tag}


def row(step, loss, **more):
    return progress.Row(step, "demo", loss, 1.0, 0.1, 10 * step, 0.5, 100.0, **more)


def test_every_column_that_has_a_value_is_a_scalar(tmp_path):
    board = progress.Board(tmp_path, 0)
    board.write(row(1, 2.0))
    board.write(row(2, 1.5, validation=1.75, utilisation=0.25))
    board.close()
    assert scalars(tmp_path, "demo/loss") == {1: 2.0, 2: 1.5}
    assert scalars(tmp_path, "demo/validation") == {2: 1.75}
    assert scalars(tmp_path, "demo/utilisation") == {2: 0.25}


def test_a_run_that_goes_on_takes_later_steps_back(tmp_path):
    progress.Board(tmp_path, 0).close()
    board = progress.Board(tmp_path, 5)
    board.write(row(6, 1.0))
    board.close()
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts[-1] == 6


def test_without_the_library_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'mixattn\[tensorboard\]'"):
        progress.Board(tmp_path, 0)


def test_a_run_writes_events_and_its_share_of_the_peak(tmp_path):
    config = tiny.get_config()
    config.train.stages[0].steps, config.train.compute.peak_flops = 3, 1e9
    run.run(config, tmp_path / "run", tensorboard=True)
    rows = progress.read(tmp_path / "run" / "metrics.csv")
    share = [float(row["utilisation"]) for row in rows]
    assert share[0] == 0  # no pace is known after one step
    assert min(share[1:]) > 0
    seen = scalars(tmp_path / "run" / "tensorboard", "tiny/loss")
    assert seen == pytest.approx({int(row["step"]): float(row["loss"]) for row in rows})
