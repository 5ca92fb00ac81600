import signal

import pytest

from tests.serving.http.tiny_server import ServerProcess, started_by


@pytest.fixture(scope="session")
def server():
    """One server for all tests that leave it as they found it."""
    short = ("--limit_header_s=1", "--limit_body_s=1", "--limit_stall_s=1")
    running = ServerProcess(*short, "--limit_connections=64")
    try:
        yield running.ready()
        assert running.stop(signal.SIGTERM) == 0, running.errors()
        assert "Traceback" not in running.errors()
    finally:
        running.close()


@pytest.fixture
def start():
    """Starts servers that end with the test."""
    yield from started_by(ServerProcess)
