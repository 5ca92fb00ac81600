"""Real servers: `serve` starts one and tells its address; a visitor keeps cookies and every byte it
received."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import ClassVar

import httpx2
import pytest

from tests import forked

ROOT = Path(__file__).resolve().parents[5]
SECRET_NAMES = ("zebrafish-70x", "quokka <b>9y</b>")
MODELS = """
[[model]]
name = "zebrafish-70x"
scripted = "The left or the right one says a word, <script>document.title = 'broken in'</script> and ends."
delay_s = 0.01

[[model]]
name = "quokka <b>9y</b>"
scripted = "Another answer, {words} and that is all."
delay_s = 0.01
"""


class Server:
    """A server process."""

    def __init__(self, folder: Path, models: str, *flags: str):
        self.folder, self.flags = folder, flags
        (folder / "models.toml").write_text(models)
        self.start()

    def start(self) -> None:
        self.process = forked.Process(
            *("mixattn.evals", "arena", "serve", f"--models={self.folder}/models.toml"),
            *(f"--db={self.folder}/arena.sqlite", "--port=0", *self.flags),
            env=os.environ | {"ARENA_ADMIN_TOKEN": "a token of the tests"},
            stdout=subprocess.DEVNULL,  # one that outlives a crashed test must not keep its output open
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.process.stderr.read()
        self.url = found[0].rstrip("/")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()


class Visitor:
    """A browser without JavaScript: follows redirects, keeps cookies and what it received."""

    open: ClassVar[list["Visitor"]] = []

    def __init__(self, url: str):
        self.url = url
        self.open.append(self)
        self.http = httpx2.Client(base_url=url, timeout=20)
        self.received: list[str] = []

    def get(self, path: str) -> httpx2.Response:
        return self._keep(self.http.get(path))

    def post(self, path: str, **fields: str) -> httpx2.Response:
        response = self._keep(self.http.post(path, data=fields))
        return self.get(response.headers["location"]) if response.status_code == 303 else response

    def _keep(self, response: httpx2.Response) -> httpx2.Response:
        self.received += [str(response.headers), response.text]
        return response

    def battle(self, prompt: str = "hello there", **fields: str) -> str:
        """Starts a battle and waits for both answers; returns its path."""
        page = self.post("/battle", **({"mode": "battle", "prompt": prompt} | fields))
        path = page.url.path
        self.wait(path)
        return path

    def wait(self, path: str) -> str:
        for _ in range(1200):
            page = self.get(path).text
            if "data-stream" not in page:
                return page
            time.sleep(0.05)
        raise AssertionError("the answers never ended")

    def token(self, path: str) -> str:
        return re.search(r'name="token" value="(\w+)"', self.get(path).text)[1]

    def vote(self, path: str, winner: str = "model_a") -> httpx2.Response:
        return self.post(f"{path}/vote", token=self.token(path), winner=winner)


@pytest.fixture(autouse=True)
def _leave():
    """Visitors close their connections after a test."""
    yield
    while Visitor.open:
        Visitor.open.pop().http.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Starts a server with the given models and flags."""
    running = []

    def start(models: str = MODELS, *flags: str) -> Server:
        running.append(Server(tmp_path_factory.mktemp("arena"), models, *flags))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def arena(serve):
    return serve()


@pytest.fixture
def visitor(arena):
    return Visitor(arena.url)
