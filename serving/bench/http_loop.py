"""What the server's event loop takes, and what slow clients take from the others."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from statistics import median
from urllib.parse import urlsplit

from serving.bench import Row, prompt, row
from serving.bench.http_sides import BenchServer, client

ECHO_TOK = 1000
LORIS = 150


def loop_cpu(server: BenchServer, load: dict[str, int], what: str, goal: str) -> Row:
    """CPU of the event loop's thread per streamed token, all of a call included."""
    before_s = server.loop_cpu_s()
    told = client(server.url, server.cores, **load | {"seed": 77})
    spent_us = 1e6 * (server.loop_cpu_s() - before_s)
    tokens = told["all"]["total_output_tokens"]
    detail = f"{tokens} tokens in {told['this_client']['events']} events, all of the call included"
    return row("http", f"event loop's CPU per streamed token, {what}", spent_us / tokens, "us", detail, goal)


def echo(server: BenchServer, count: int) -> Row:
    """Loop time of answers with `echo` and `logprobs` of a long prompt."""
    rng, spent = random.Random(3), []
    for _ in range(count):
        before_s = server.loop_cpu_s()
        body = {"prompt": prompt(rng, ECHO_TOK), "echo": True, "logprobs": 1, "max_tokens": 1}
        server.exchange("POST", "/v1/completions", body)
        spent.append(1e3 * (server.loop_cpu_s() - before_s))
    detail = f"{ECHO_TOK} tokens, median of {len(spent)}"
    return row("http", "event loop's CPU of an echo with logprobs", median(spent), "ms", detail, "<= 10")


def slow_loris(server: BenchServer, load: dict[str, int], rounds: int) -> Iterator[Row]:
    alone, beside = [], []
    for i in range(rounds):
        told = client(server.url, server.cores, **load | {"seed": 40 + i})
        alone.append(told["all"]["output_throughput"])
        with _dripping(server):
            told = client(server.url, server.cores, **load | {"seed": 60 + i})
            beside.append(told["all"]["output_throughput"])
    ratio = median(b / a for a, b in zip(alone, beside))
    detail = f"{LORIS} connections that send a byte of their head every second"
    yield row("http", "throughput beside slow-loris connections", ratio, "", detail, ">= 0.95")


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
