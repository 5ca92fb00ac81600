import signal

import pytest

from tests.serving.cluster.cluster_process import ClusterProcess
from tests.serving.http.tiny_server import ServerProcess, started_by


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two workers for all tests that leave as many as they found."""
    log = tmp_path_factory.mktemp("cluster") / "decisions.jsonl"
    running = ClusterProcess("--heartbeat_s=1.5", "--max_tries=30", f"--decision_log={log}", workers=2)
    running.decisions = log
    try:
        yield running.ready()
        assert running.stop(signal.SIGTERM) == 0, running.errors()
        assert "Traceback" not in running.errors(), running.errors()
    finally:
        running.close()


@pytest.fixture(scope="session")
def alone():
    """One engine, whose answers are the right ones."""
    running = ServerProcess()
    try:
        yield running.ready()
    finally:
        running.close()


@pytest.fixture
def start():
    """Starts clusters that end with the test."""
    yield from started_by(ClusterProcess)
