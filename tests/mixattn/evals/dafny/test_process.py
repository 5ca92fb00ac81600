"""What runs confined is bounded, and leaves nothing behind."""

import subprocess
import time

import pytest

from mixattn.evals.dafny.process import MAX_FILE_BYTES, confinement, run_confined


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


def test_there_is_no_network_where_the_kernel_allows_namespaces(tmp_path):
    if confinement() != "namespaces and limits":
        pytest.skip(f"this kernel gives {confinement()}")
    seen = run_confined(["cat", "/proc/net/dev"], tmp_path, wall_limit_s=20).output
    assert [line.split(":")[0].strip() for line in seen.splitlines()[2:]] == ["lo"]


def test_input_is_closed_and_the_folder_is_home(tmp_path):
    ran = run_confined(["sh", "-c", "cat; pwd; echo $HOME; echo $TMPDIR"], tmp_path, wall_limit_s=20)
    assert ran.output.split() == [str(tmp_path)] * 3


def test_memory_and_processes_are_bounded(tmp_path):
    if "limits" not in confinement():
        pytest.skip(f"this kernel gives {confinement()}")
    greedy = "x = bytearray(1 << 30); print(len(x))"
    ran = run_confined(["python3", "-c", greedy], tmp_path, wall_limit_s=20, memory_bytes=512 << 20)
    assert "MemoryError" in ran.output


def test_processor_time_counts_children(tmp_path):
    work = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'"
    ran = run_confined(["sh", "-c", f"{work}; true"], tmp_path, wall_limit_s=60)
    assert 0 < ran.cpu_seconds <= ran.seconds + 0.5
