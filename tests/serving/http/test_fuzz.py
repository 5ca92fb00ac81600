"""Mutated requests leave a server that still answers: no crash, no 5xx of theirs, nothing kept."""

import os

import pytest

from tests.serving.http.fuzzing import fuzz

# Some mutations ask for an end of the body that never comes; a short time-out keeps them from taking long.
FLAGS = ("--limit_header_s=0.5", "--limit_body_s=0.5", "--limit_request_s=30")


def footprint(server) -> tuple[int, float]:
    """Open descriptors, and resident megabytes."""
    pid = server.process.pid
    with open(f"/proc/{pid}/status") as lines:
        kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return len(os.listdir(f"/proc/{pid}/fd")), kib / 1024


def check(server, count: int, seed: int) -> None:
    fuzz(server.port, max(64, count // 10), seed + 1)
    server.until_idle()
    fds, megabytes = footprint(server)
    statuses, wrong = fuzz(server.port, count, seed)
    print(dict(statuses), *wrong, sep="\n")
    assert not wrong, f"{len(wrong)} answers of the server's own fault"
    assert statuses[200] > count / 10  # the control: not everything is refused
    assert statuses[400] > count / 10
    server.until_idle()
    after_fds, after_megabytes = footprint(server)
    print(f"descriptors {fds} -> {after_fds}, resident {megabytes:.0f} -> {after_megabytes:.0f} MB")
    assert after_fds <= fds + 2
    assert after_megabytes <= megabytes + 24
    assert server.complete()["choices"]
    assert "Traceback" not in server.errors()


def test_a_hundred_mutated_requests(server):
    check(server, 100, seed=0)


@pytest.mark.long
def test_a_hundred_thousand_mutated_requests(start):
    server = start(*FLAGS).ready()
    check(server, 100_000, seed=1)
    assert server.stop() == 0
