"""What the server costs over the engine: throughput, first token, event loop, many streams, slow clients.

Server, engine and client are processes of their own on the same cores; what is compared runs interleaved.
"""

import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from serving.bench import Row, Size, prompt, row
from serving.bench.http_sides import BenchEngine, BenchServer, client, write_checkpoint

SLOTS = 16  # the server's default
LOAD = {"num_prompts": 64, "random_input_len": 64, "random_output_len": 64}
MANY = {"num_prompts": 1000, "random_input_len": 32, "random_output_len": 32}
ONE = {"num_prompts": 12, "random_input_len": 64, "random_output_len": 8, "max_concurrency": 1}
ECHO_TOK = 1000
LORIS = 150


def http_(size: Size) -> list[Row]:
    """All figures of the server, on two cores and on one."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        rows = _on(checkpoint, Path(folder) / "one.jsonl", cores[:1], size, ">= 0.80")
        if len(cores) > 1:
            rows += _on(checkpoint, Path(folder) / "two.jsonl", cores[:2], size, ">= 0.90")
        rows += _details(checkpoint, Path(folder), cores[:2], size)
    return rows


def _on(checkpoint: Path, log: Path, cores: Sequence[int], size: Size, goal: str) -> list[Row]:
    """Output tokens/s through HTTP over those of `engine.run` on the same requests."""
    rows = []
    server, engine = BenchServer(checkpoint, cores, log), BenchEngine(checkpoint, cores)
    try:
        for name, load, rounds in (("64 streams", LOAD, size.repeats), ("1,000 streams", MANY, 1)):
            through, bare = [], []
            for i in range(rounds + 1):
                given = load | {"seed": i}
                told = client(server.url, cores, **given)
                rate = engine.output_tok_per_s(**given)
                if i or rounds == 1:  # the first round warms both
                    through.append(told["all"]["output_throughput"])
                    bare.append(rate)
            what = f"{name} on {len(cores)} core{'s' * (len(cores) > 1)}"
            share = told["this_client"]["core_share"]
            rows += [
                row(
                    "http",
                    f"{what}: output through HTTP",
                    median(through),
                    "tok/s",
                    f"client {share:.0%} of a core",
                ),
                row("http", f"{what}: output of engine.run", median(bare), "tok/s", f"{SLOTS} slots"),
                row(
                    "http",
                    f"{what}: HTTP over engine.run",
                    median(a / b for a, b in zip(through, bare)),
                    "",
                    f"median of {len(through)} interleaved rounds",
                    goal,
                ),
            ]
    finally:
        engine.stop()
        server.stop()
    return rows


def _details(checkpoint: Path, folder: Path, cores: Sequence[int], size: Size) -> list[Row]:
    server = BenchServer(checkpoint, cores, folder / "more.jsonl")
    try:
        client(server.url, cores, **LOAD)  # warms
        compiled = _stats(server)["programs"]
        told = {
            "one": client(server.url, cores, '--extra_request_body={"user": "one"}', **ONE),
            "many": client(server.url, cores, '--extra_request_body={"user": "many"}', **LOAD),
        }
        rows = [_loop_cpu(server, cores, "at the default steps", "<= 25"), _echo(server, size)]
        rows += _thousand(server, cores, size)
        rows += _slow_loris(server, cores, size)
        rows.append(
            row(
                "http", "programs compiled after start", _stats(server)["programs"] - compiled, "", goal="= 0"
            )
        )
    finally:
        events = server.stop()
    rows = _first_token(events, told) + rows
    stepwise = BenchServer(checkpoint, cores, folder / "step.jsonl", "--engine.limits.decode_steps=[1]")
    try:
        client(stepwise.url, cores, **LOAD)
        rows.append(_loop_cpu(stepwise, cores, "at one token an event", "<= 80"))
    finally:
        stepwise.stop()
    return rows


def _first_token(events: Sequence[dict[str, Any]], told: dict[str, dict[str, Any]]) -> list[Row]:
    """Client's first token minus the engine's, medians of each; the engine's from its event log."""
    step_ms = 1e3 * _step_s(events, "many")
    rows = []
    for name, what, goal in (
        ("one", "1 request", "<= 3"),
        ("many", f"{LOAD['num_prompts']} requests at once", f"<= {step_ms + 5:.2f}"),
    ):
        arrived = {e["id"]: e["t"] for e in events if e["event"] == "arrive" and e["client"] == name}
        first = [
            1e3 * (e["t"] - arrived[e["id"]])
            for e in events
            if e["event"] == "first_token" and e["id"] in arrived
        ]
        seen = told[name]["all"]["latency_ms"]["ttft"]["median"]
        detail = f"HTTP {seen:.2f} ms, engine {median(first):.2f} ms" + (
            f", a step {step_ms:.2f} ms" if name == "many" else ""
        )
        rows.append(
            row(
                "http", f"{what}: first token over the engine's own", seen - median(first), "ms", detail, goal
            )
        )
    return rows


def _step_s(events: Sequence[dict[str, Any]], name: str) -> float:
    """Median time between steps that brought tokens to this client."""
    times = [e["t"] for e in events if e["event"] == "tokens" and name in e["counts"]]
    return median(b - a for a, b in itertools.pairwise(times))


def _loop_cpu(server: BenchServer, cores: Sequence[int], what: str, goal: str) -> Row:
    before_s = server.loop_cpu_s()
    told = client(server.url, cores, **LOAD | {"seed": 77})
    spent_us = 1e6 * (server.loop_cpu_s() - before_s)
    tokens = told["all"]["total_output_tokens"]
    detail = f"{tokens} tokens in {told['this_client']['events']} events, all of the call included"
    return row("http", f"event loop's CPU per streamed token, {what}", spent_us / tokens, "us", detail, goal)


def _echo(server: BenchServer, size: Size) -> Row:
    """Loop time of answers with `echo` and `logprobs` of a long prompt."""
    rng, spent = random.Random(3), []
    for _ in range(5 + size.repeats):
        before_s = server.loop_cpu_s()
        body = {"prompt": prompt(rng, ECHO_TOK), "echo": True, "logprobs": 1, "max_tokens": 1}
        _post(server, "/v1/completions", body)
        spent.append(1e3 * (server.loop_cpu_s() - before_s))
    detail = f"{ECHO_TOK} tokens, median of {len(spent)}"
    return row("http", "event loop's CPU of an echo with logprobs", median(spent), "ms", detail, "<= 10")


def _thousand(server: BenchServer, cores: Sequence[int], size: Size) -> list[Row]:
    """A thousand streams at once beside sixteen: who is answered, how even the running ones' events come."""
    before, ratios, told = server.resident_mib(), [], {}
    for i in range(2):
        few = client(
            server.url, cores, **MANY | {"max_concurrency": SLOTS, "num_prompts": 128, "seed": 10 + i}
        )
        told = client(server.url, cores, **MANY | {"seed": 20 + i})
        ratios.append(told["all"]["latency_ms"]["gap"]["p99"] / few["all"]["latency_ms"]["gap"]["p99"])
    of, gap = told["all"], told["all"]["latency_ms"]["gap"]["p99"]
    grown = server.resident_mib("VmHWM") - before
    return [
        row("http", "1,000 streams: answered", of["completed"], "", f"{of['failed']} failed", "= 1000"),
        row(
            "http",
            "1,000 streams: p99 between events over that at 16",
            median(ratios),
            "",
            f"{gap:.1f} ms",
            "<= 1.3",
        ),
        row("http", "1,000 streams: resident memory more", grown, "MiB", "peak since start", "<= 150"),
    ]


def _slow_loris(server: BenchServer, cores: Sequence[int], size: Size) -> list[Row]:
    alone, beside = [], []
    for i in range(size.repeats):
        alone.append(client(server.url, cores, **LOAD | {"seed": 40 + i})["all"]["output_throughput"])
        with _dripping(server):
            beside.append(client(server.url, cores, **LOAD | {"seed": 60 + i})["all"]["output_throughput"])
    ratio = median(b / a for a, b in zip(alone, beside))
    detail = f"{LORIS} connections that send a byte of their head every second"
    return [row("http", "throughput beside slow-loris connections", ratio, "", detail, ">= 0.95")]


@contextlib.contextmanager
def _dripping(server: BenchServer) -> Iterator[None]:
    """Connections that send their request's head byte by byte; one that is closed is opened again."""
    at, stop = urlsplit(server.url), threading.Event()

    def drip() -> None:
        open_ = [socket.create_connection((at.hostname, at.port)) for _ in range(LORIS)]
        while not stop.wait(1.0):
            for i, one in enumerate(open_):
                try:
                    one.send(b"G")
                except OSError:
                    one.close()
                    open_[i] = socket.create_connection((at.hostname, at.port))
        for one in open_:
            one.close()

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _post(server: BenchServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return _exchange(server, "POST", path, json.dumps(body))


def _stats(server: BenchServer) -> dict[str, Any]:
    stats: dict[str, Any] = _exchange(server, "GET", "/get_server_info")["stats"]
    return stats


def _exchange(server: BenchServer, method: str, path: str, body: str | None = None) -> dict[str, Any]:
    at = urlsplit(server.url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=120)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ValueError(f"{path} answered {answer.status}: {content[:200]!r}")
        told: dict[str, Any] = json.loads(content)
        return told
    finally:
        connection.close()
