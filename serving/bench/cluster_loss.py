"""How long the clients of a lost worker wait for their next token: after kill -9, and after a worker stops.

Two workers, eight streams on both; one worker is lost in the middle. What it ran goes on at the other one
with the tokens it has as prompt: one prefill and one step after the loss was noticed, which takes a broken
stream for a killed worker and the heartbeat for a stopped one.
"""

import http.client
import itertools
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from serving.bench import Row, Size, prompt, row
from serving.bench.http_sides import BenchServer, write_checkpoint

STREAMS, PROMPT_TOK, OUTPUT_TOK = 8, 256, 900
HEARTBEAT_S = 1.0
TICK_S = 0.05  # how often the ingress looks
AFTER_S = 0.5  # from the start of the streams to the loss
LOSSES = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}


def cluster_loss(size: Size) -> Iterator[Row]:
    """The longest silence of a stream, without a loss and with one of each kind."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        flags = (f"--heartbeat_s={HEARTBEAT_S}", "--workers=2", f"--cores={','.join(map(str, cores))}")
        log = Path(folder) / "cluster.jsonl"
        server = BenchServer(checkpoint, cores, log, *flags, module="serving.cluster")
        try:
            yield from _measured(server, size.repeats)
        finally:
            server.stop()


def _measured(server: BenchServer, rounds: int) -> Iterator[Row]:
    first_s = median(_silences(server, [i])[0][0] for i in range(100, 105))
    yield row("cluster_loss", "first token of a stream alone", first_s, "s", "a prefill and a step")
    usual_s = max(max(gaps[1:]) for gaps in _silences(server, range(STREAMS)))
    yield row("cluster_loss", "longest silence without a loss", usual_s, "s", f"{STREAMS} streams")
    bound_s = HEARTBEAT_S + TICK_S + STREAMS // 2 * first_s + usual_s
    for name, number in LOSSES.items():
        found = [_lost(server, number, STREAMS * (2 + i)) for i in range(rounds)]
        detail = f"median of {rounds} losses, heartbeat {HEARTBEAT_S:g} s; "
        detail += f"goal: heartbeat, a look, {STREAMS // 2} prefills one after the other, a usual silence"
        goal = f"<= {bound_s:.3f}"
        yield row("cluster_loss", f"longest silence after {name}", median(found), "s", detail, goal)


def _lost(server: BenchServer, number: signal.Signals, seed: int) -> float:
    """The longest silence of a stream while a worker is lost."""
    workers = _until_up(server)
    pid = workers[0]
    timer = threading.Timer(AFTER_S, os.kill, (pid, number))
    timer.start()
    silences = _silences(server, range(seed, seed + STREAMS))
    timer.join()
    if number == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    _until_up(server)
    return max(max(gaps[1:]) for gaps in silences)


def _until_up(server: BenchServer) -> list[int]:
    """Process ids of both workers, once they are up."""
    while True:
        told = server.exchange("GET", "/cluster/workers")["workers"]
        pids = [worker["pid"] for worker in told if worker["state"] == "up"]
        if len(pids) == 2:
            return pids
        time.sleep(0.1)


def _silences(server: BenchServer, seeds: Sequence[int]) -> list[list[float]]:
    """Seconds to the first token and between tokens of streams that run at once."""
    found: list[list[float]] = [[] for _ in seeds]

    def one(place: int, seed: int) -> None:
        body = {"prompt": prompt(random.Random(seed), PROMPT_TOK), "ignore_eos": True, "stream": True}
        body |= {"max_tokens": OUTPUT_TOK, "user": f"c{place % 4}"}
        at = urlsplit(server.url)
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=120)
        times = [time.perf_counter()]
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
        connection.close()
        found[place] = [b - a for a, b in itertools.pairwise(times)]

    threads = [threading.Thread(target=one, args=item) for item in enumerate(seeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
