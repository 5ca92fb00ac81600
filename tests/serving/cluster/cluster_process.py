"""A real cluster of tiny workers, and what may be done to it."""

import os
import signal
import time
from pathlib import Path

from tests.serving.http.tiny_server import ServerProcess


class ClusterProcess(ServerProcess):
    """A running ingress with its workers."""

    def __init__(self, *flags, workers=2, transport="http"):
        super().__init__(f"--workers={workers}", f"--transport={transport}", *flags, module="serving.cluster")

    def workers(self):
        return self.get("/cluster/workers")[1]["workers"]

    def pids(self):
        return {w["worker"]: w["pid"] for w in self.workers() if w["state"] == "up"}

    def until_up(self, count, limit_s=60.0):
        """Waits until so many workers are up; their process ids by place."""
        deadline_s = time.monotonic() + limit_s
        while len(pids := self.pids()) < count:
            assert time.monotonic() < deadline_s, f"{self.workers()}: {self.errors()}"
            time.sleep(0.05)
        return pids

    def until_clean(self, limit_s=20.0):
        """Waits until the workers have told that nothing runs and no page is in use; the stats then."""
        deadline_s = time.monotonic() + limit_s
        while True:
            info = self.get("/get_server_info")[1]
            stats = info["stats"]
            used = sum(counts[0] for counts in stats["pages"].values())
            if not (stats["running"] or stats["waiting"] or info["open_calls"] or used):
                return stats
            assert time.monotonic() < deadline_s, info
            time.sleep(0.05)


def until(holds, limit_s=20.0):
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs, stopped or not; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until_dead(pids, limit_s=10.0):
    deadline_s = time.monotonic() + limit_s
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline_s, f"processes {left} are left behind"
        time.sleep(0.05)


def hurt(pid, number=signal.SIGKILL):
    os.kill(pid, number)
