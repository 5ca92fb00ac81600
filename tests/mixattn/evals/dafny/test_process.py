"""What runs confined is bounded, and leaves nothing behind."""

import subprocess
import time

import pytest

from mixattn.evals.dafny.process import MAX_FILE_BYTES, run_confined


def living(mark: str) -> bool:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return any(mark in line and "ps -eo" not in line for line in listed.splitlines())


def test_a_program_dies_with_its_children_at_the_wall_limit(tmp_path):
    ran = run_confined(["sh", "-c", "sleep 4711 & sleep 4711"], tmp_path, wall_limit_s=0.5)
    assert ran.timed_out
    assert ran.seconds < 10
    time.sleep(0.2)
    assert not living("sleep 4711")


def test_a_child_that_outlives_its_parent_dies_too(tmp_path):
    ran = run_confined(["sh", "-c", "sleep 4712 & exit 3"], tmp_path, wall_limit_s=20)
    assert ran.exit_code == 3
    assert not ran.timed_out
    time.sleep(0.2)
    assert not living("sleep 4712")


def test_a_file_cannot_grow_without_end(tmp_path):
    run_confined(["sh", "-c", "yes > big"], tmp_path, wall_limit_s=20)
    assert (tmp_path / "big").stat().st_size <= MAX_FILE_BYTES


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run_confined(["no-such-program"], tmp_path, wall_limit_s=1)
