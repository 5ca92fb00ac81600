"""Checkpoints: what is restored, what is kept, what is refused."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import digests
from train.checkpoint import Checkpoints, ignore_closed_loop_errors
from train.step import TrainState


def state(n: float) -> TrainState:
    params = {"embed.table": jnp.full((8, 4), n), "blocks.0.attention.q.kernel": jnp.full((4, 4), -n)}
    opt_state = jax.tree.map(lambda x: x + 1, params)
    return TrainState(jnp.int32(n), params, {"mu": opt_state, "count": jnp.int32(n)})


def restore(checkpoints, step):
    like = state(0)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    return checkpoints.restore(step, like, shardings)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b)))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "c", keep_last=2, keep_best=1)
    yield made
    made.manager.close()


def test_a_saved_state_is_restored_although_training_continued(checkpoints):
    @jax.jit
    def double(x):
        return jax.tree.map(lambda y: y * 2, x)

    advance = jax.jit(double, donate_argnums=0)
    now, saved = state(3), state(3)
    checkpoints.save(3, now, {"batches": {"next_index": 7}, "seconds": 1.5})
    for _ in range(5):  # reuses the very buffers that are being written
        now = advance(now)
    checkpoints.wait()
    assert equal(restore(checkpoints, 3), saved)
    assert checkpoints.meta(3) == {"batches": {"next_index": 7}, "seconds": 1.5}


def test_the_newest_and_the_best_are_kept(checkpoints):
    for step, validation in enumerate([9.0, 2.0, 5.0, 4.0, None, 6.0], start=1):
        checkpoints.save(step, state(step), {}, validation)
    checkpoints.wait()
    assert checkpoints.steps == [2, 5, 6]


def test_what_is_newer_than_a_named_step_is_removed(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    checkpoints.remove_after(1)
    assert checkpoints.steps == [1]
    checkpoints.save(2, state(7), {})
    checkpoints.wait()
    assert equal(restore(checkpoints, 2), state(7))


def test_other_shapes_are_refused_with_the_step_and_an_older_one_named(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    like = state(0)
    like.params["embed.table"] = jnp.zeros((9, 4))
    shardings = jax.tree.map(lambda x: x.sharding, like)
    with pytest.raises(ValueError, match=r"step 2 .* cannot be used .*--step=1 resumes from the one before"):
        checkpoints.restore(2, like, shardings)


def test_a_full_disk_is_refused_before_anything_is_written(checkpoints, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("train.checkpoint.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"a checkpoint takes 0 MiB and .* has 0 MiB left"):
        checkpoints.save(1, state(1), {})
    assert checkpoints.steps == []


def test_an_interrupted_write_is_removed(tmp_path):
    left = tmp_path / "c" / "5.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    opened = Checkpoints(tmp_path / "c")
    assert opened.steps == []
    opened.close()


def test_errors_of_the_closed_event_loop_are_ignored_and_others_are_not():
    passed_on = []
    hook = ignore_closed_loop_errors(passed_on.append)
    for why in (RuntimeError("Event loop is closed"), RuntimeError("something else"), OSError("disk")):
        hook(SimpleNamespace(exc_value=why))
    assert [str(one.exc_value) for one in passed_on] == ["something else", "disk"]


def test_a_flipped_byte_in_any_file_of_a_checkpoint_is_refused(checkpoints):
    checkpoints.save(1, state(1), {"seconds": 1.0}, validation=2.0)
    checkpoints.wait()
    folder = checkpoints.folder / "1"
    names = sorted(p for p in folder.rglob("*") if p.is_file())
    assert len(names) > 5
    assert digests.NAME in {p.name for p in names}
    for file in names:
        whole = file.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1} if whole else ():
            damaged = bytearray(whole)
            damaged[at] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"step 1 .* cannot be used .*not as it was written"):
                checkpoints.meta(1)
        file.write_bytes(whole)
    assert checkpoints.meta(1) == {"seconds": 1.0}
    assert equal(restore(checkpoints, 1), state(1))


def test_a_file_that_is_missing_or_new_in_a_checkpoint_is_refused(checkpoints):
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    (checkpoints.folder / "1" / "note").write_text("")
    with pytest.raises(ValueError, match=r"note is new"):
        checkpoints.meta(1)
    (checkpoints.folder / "1" / "note").unlink()
    (checkpoints.folder / "1" / "meta" / "metadata").unlink()
    with pytest.raises(ValueError, match=r"meta/metadata is missing"):
        checkpoints.meta(1)


def test_a_checkpoint_of_an_older_version_has_no_digests_and_is_read(checkpoints):
    checkpoints.save(1, state(1), {"seconds": 2.0})
    checkpoints.wait()
    (checkpoints.folder / "1" / digests.NAME).unlink()
    assert checkpoints.meta(1) == {"seconds": 2.0}
