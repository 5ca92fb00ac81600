"""A tiny checkpoint with a byte-level tokenizer, real server processes on real sockets, and plain clients."""

import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixattn import ModelConfig, Transformer, hf
from tests import forked

ROOT = Path(__file__).resolve().parents[3]
LONGEST = 1024
TEXT = ["def f(x):\n    return x + 1\n", "the quick brown fox jumps over the lazy dog", "naïve café über"] * 3
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# One prefill shape and two decode programs instead of eight programs: the tests start many servers.
SMALL = (
    "--engine.limits.chunk_tok=64",
    "--engine.limits.step_tok=64",
    "--engine.chunk_sizes=[64]",
    "--slots=4",
    "--kv_memory=16MiB",
)


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXT, trainer)
    return made


@functools.cache
def checkpoint() -> Path:
    """A random model of a few thousand parameters, written once per process."""
    folder = Path(tempfile.mkdtemp(prefix="mixattn-http-")) / "tiny"
    words = tokenizer()
    config = ModelConfig(
        n_layers=3,
        d_model=32,
        n_heads=2,
        n_kv_heads=1,
        head_dim=16,
        d_ff=64,
        vocab_size=words.get_vocab_size(),
        kv_wiring="0s_1_1",
        window=32,
        max_positions=LONGEST,
    )
    net = Transformer(config, rngs=nnx.Rngs(3))
    hf.save(
        net,
        folder,
        words,
        extra={"eos_token_id": 0},
        tokenizer_config={"chat_template": CHAT, "eos_token": "<end>"},
    )
    return folder


class ServerProcess:
    """A running server.

    Args:
      flags: more flags; module: what `python -m` runs.
    """

    def __init__(self, *flags: str, module: str = "serving.http", path: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mixattn-http-"))
        self.log = self.folder / "events.jsonl"
        self._err = (self.folder / "stderr").open("w+")
        self.process = forked.Process(
            module,
            *(f"--checkpoint={path or checkpoint()}", "--port=0"),
            *(*SMALL, f"--event_log={self.log}", *flags),
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=self._err,
            text=True,
        )
        self.port = 0

    def ready(self, limit_s: float = 900) -> "ServerProcess":
        assert self.process.stdout is not None
        timer = threading.Timer(limit_s, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        assert line.startswith("ready http://"), f"no ready line but {line!r}: {self.errors()}"
        self.port = int(line.split()[1].rsplit(":", 1)[1])
        return self

    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(limit_s)

    def wait(self, limit_s: float = 30) -> int:
        """The exit status, without another signal."""
        try:
            return self.process.wait(limit_s)
        finally:
            self.close()

    def close(self) -> None:
        """Whatever happens, nothing is left running or open."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._err.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    # ---- clients ----

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def request(self, method: str, path: str, body=None, headers=None, timeout_s: float = 60):
        """(status, headers, parsed body) of one exchange; `body` is JSON or bytes."""
        http_ = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            http_.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
            answer = http_.getresponse()
            content = answer.read()
        finally:
            http_.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, found, json.loads(content) if is_json else content

    def post(self, path: str, body=None, **more):
        status, _, parsed = self.request("POST", path, body, **more)
        return status, parsed

    def get(self, path: str, **more):
        status, _, parsed = self.request("GET", path, **more)
        return status, parsed

    def complete(self, **fields):
        """A completion that must succeed."""
        status, answer = self.post("/v1/completions", {"prompt": "the quick", "max_tokens": 4, **fields})
        assert status == 200, answer
        return answer

    def complete_status(self, body: dict) -> int:
        status, _ = self.post("/v1/completions", body)
        return status

    def stream(self, path: str, body: dict, **more):
        """The events of a stream, as they arrive; the last is "[DONE]" or an object."""
        http_ = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        http_.request(
            "POST",
            path,
            json.dumps({**body, "stream": True}),
            {"Content-Type": "application/json", **more.get("headers", {})},
        )
        answer = http_.getresponse()
        assert answer.status == 200, answer.read()
        try:
            for line in answer:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    yield "[DONE]" if data == b"[DONE]" else json.loads(data)
        finally:
            http_.close()

    def stats(self) -> dict:
        return self.get("/get_server_info")[1]["stats"]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].decode().splitlines():
            found = line.split("{")[0] == f"mixattn:{name}" and all(
                f'{k}="{v}"' in line for k, v in labels.items()
            )
            total += float(line.rsplit(" ", 1)[1]) if found else 0.0
        return total

    def until_idle(self, limit_s: float = 20) -> dict:
        """Waits until nothing is queued or running; the engine's stats then."""
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            info = self.get("/get_server_info")[1]
            stats = info["stats"]
            if not stats["running"] and not stats["waiting"] and not info["open_calls"]:
                assert all(used == 0 for used, *_ in stats["pages"].values()), stats["pages"]
                return stats
            time.sleep(0.02)
        raise AssertionError(f"not idle after {limit_s} s: {self.stats()}")

    def events(self) -> list[dict]:
        """The engine's log so far, once it is on disk: only after `stop`."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def exchange(sock: socket.socket, raw: bytes, limit_s: float = 20) -> bytes:
    """Sends bytes and reads until the server closes or says nothing for a while."""
    sock.settimeout(limit_s)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(raw)
    got = b""
    try:
        while piece := sock.recv(65536):
            got += piece
    except (TimeoutError, ConnectionResetError):
        pass
    sock.close()
    return got


def raw_post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""]).encode() + body


def started_by(process_class):
    """For a fixture: yields what starts processes of a class, and closes them after the test."""
    running = []

    def one(*flags, **more):
        running.append(process_class(*flags, **more))
        return running[-1]

    yield one
    for process in running:
        process.close()
