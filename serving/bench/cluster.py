"""What the ingress of a cluster costs: a decision, a dispatch, a streamed token; and beside one server."""

import gc
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mixattn.tools import collector
from serving import fair
from serving.bench import Row, Size, row
from serving.bench.http_sides import BenchServer, client, write_checkpoint
from serving.cluster import messages
from serving.cluster.ingress import Ingress
from serving.cluster.live_output import Send
from serving.request import Delta, Request, Sampling

PROMPT_TOK = 512
GROUPS = 400  # prefixes that requests share
BLOCK_TOK = 32
BATCH = 50  # requests that are timed together: the clock of CPU time is slow
LOAD = {"num_prompts": 64, "random_input_len": 64, "random_output_len": 64}
ONE = {"num_prompts": 24, "random_input_len": 64, "random_output_len": 8, "max_concurrency": 1}


def ingress(size: Size) -> list[Row]:
    """The deciding part alone."""
    return [*dispatch(16), *decision(1000), token()]


# ---- the deciding part, alone ----


def requests(count: int, seed: int) -> list[Request]:
    """Prompts of 512 tokens: three quarters of them shared by a group."""
    rng = random.Random(seed)
    shared = [[rng.randrange(2000) for _ in range(PROMPT_TOK * 3 // 4)] for _ in range(GROUPS)]
    made = []
    for i in range(count):
        group = rng.randrange(GROUPS)
        prompt = shared[group] + [rng.randrange(2000) for _ in range(PROMPT_TOK // 4)]
        sampling = Sampling(max_tokens=16, seed=i)
        made.append(Request(client=f"c{group % 50}", id=f"r{seed}-{i}", prompt_ids=prompt, sampling=sampling))
    return made


def ended(ingress: Ingress, send: Send, now_s: float) -> None:
    """The worker says that it has run the request."""
    name = send.request.id
    ingress.admitted(name, send.attempt, extend_tok=128, hit_tok=PROMPT_TOK - 128, now_s=now_s)
    told = {"d": [[send.attempt, 0, list(range(16)), "", 0, ["length", None, 0]]]}
    row_of = json.loads(messages.line(told))["d"][0]
    ingress.reported(name, send.attempt, 0, messages.delta_of(row_of), now_s)


def dispatch(workers: int) -> Iterator[Row]:
    """CPU from a request's arrival to the bytes for its worker, with 10,000 blocks in the router's tree."""
    collector.collect_rarely()  # as the command does
    ingress = Ingress(fair.make("d2lpm", max_blocks=10_000), block_tok=BLOCK_TOK)
    for _ in range(workers):
        ingress.join(max_live=32)
    live: list[Send] = []
    spent: dict[str, float] = {}
    for phase, batches in (("warm", 60), ("measured", 200)):
        spent = {"submit": 0.0, "dispatch": 0.0, "encode": 0.0, "reports": 0.0}
        made = iter(requests(batches * BATCH, len(phase)))
        gc.collect()
        for now_s in range(batches):
            batch = list(itertools.islice(made, BATCH))
            at_s = [time.process_time()]
            for request in batch:
                ingress.submit(request, now_s)
            at_s.append(time.process_time())
            sends = ingress.dispatch(now_s)
            at_s.append(time.process_time())
            for send in sends:
                messages.run_command(*send[1:])
            at_s.append(time.process_time())
            live += sends
            done, live = live[: -16 * workers], live[-16 * workers :]
            for send in done:
                ended(ingress, send, now_s)
            ingress.deltas.clear()
            at_s.append(time.process_time())
            for name, (began_s, ended_s) in zip(spent, itertools.pairwise(at_s)):
                spent[name] += ended_s - began_s
    tree = ingress.router.prefix_map
    blocks = 0 if tree is None else len(tree)
    detail = f"prompts of {PROMPT_TOK} tokens, {workers} workers, {blocks:,} blocks, {len(live)} live"
    us = {name: 1e6 * part_s / (batches * BATCH) for name, part_s in spent.items()}
    goal = "<= 60" if workers <= 16 else ""
    yield row(
        "ingress",
        "CPU of a dispatch: queue, choose, bill, encode",
        us["submit"] + us["dispatch"] + us["encode"],
        "us",
        detail,
        goal,
    )
    for name, spent_us in us.items():
        yield row("ingress", f"of a request: {name}", spent_us, "us")


def decision(workers: int) -> Iterator[Row]:
    """The router's choice among a thousand workers."""
    router = fair.make("d2lpm", max_blocks=200_000)
    for worker in range(workers):
        router.join(worker, max_live=32)
    spent: list[float] = []
    ids: list[str] = []
    ingress = Ingress(router, block_tok=BLOCK_TOK)  # cuts the blocks as the live one does
    for i, request in enumerate(requests(20_000, 7)):
        ingress.submit(request, 0.0)
        live = ingress.live[request.id]
        info, blocks = live.info(), live.blocks(BLOCK_TOK)
        began_s = time.perf_counter()
        router.dispatch(info, blocks, i * 1e-4)
        spent.append(1e6 * (time.perf_counter() - began_s))
        ids.append(request.id)
        if len(ids) > 8 * workers:
            router.ended(ids.pop(0), 16)
    spent = sorted(spent[2000:])
    detail = f"{len(spent):,} decisions, prompts of {PROMPT_TOK} tokens in blocks of {BLOCK_TOK}"
    yield row(
        "ingress", f"a decision among {workers:,} workers, median", median(spent), "us", detail, "<= 1000"
    )
    yield row(
        "ingress",
        f"a decision among {workers:,} workers, p99",
        spent[len(spent) * 99 // 100],
        "us",
        detail,
        "<= 1000",
    )


def token() -> Row:
    """CPU from a line of a worker to deltas for the clients: 8 outputs that each get a token in a step."""
    ingress, rows = Ingress(fair.make("least_load"), block_tok=BLOCK_TOK), 8
    ingress.join(max_live=rows)
    for i in range(rows):
        sampling = Sampling(max_tokens=4000, seed=i)
        ingress.submit(Request(client=f"c{i}", id=f"r{i}", prompt_ids=[1, 2, 3], sampling=sampling), 0.0)
    sends = ingress.dispatch(0.0)
    for send in sends:
        ingress.admitted(send.request.id, send.attempt, extend_tok=3, hit_tok=0, now_s=0.0)
    names = {send.attempt: send.request.id for send in sends}
    steps = 3000
    lines = [
        messages.line(
            {"d": [messages.delta_row(s.attempt, step, Delta("", "", [step], text=" word")) for s in sends]}
        )
        for step in range(steps)
    ]
    gc.collect()
    began_s = time.process_time()
    for line in lines:
        for told in json.loads(line)["d"]:
            ingress.reported(names[told[0]], told[0], told[1], messages.delta_of(told), 0.0)
        ingress.deltas.clear()
    spent_us = 1e6 * (time.process_time() - began_s) / (steps * rows)
    detail = f"{rows} outputs, one token each a line; the server's own part is in http.csv"
    return row("ingress", "CPU of a streamed token: line, ledgers, delta", spent_us, "us", detail, "<= 25")


# ---- processes ----


def cluster(size: Size) -> Iterator[Row]:
    """One worker behind the ingress, and two, beside the same engine behind its own HTTP server."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        sides = {
            "server": BenchServer(checkpoint, cores[:1], Path(folder) / "server.jsonl"),
            "one": _cluster(checkpoint, cores, Path(folder) / "one.jsonl", 1),
            "two": _cluster(checkpoint, cores, Path(folder) / "two.jsonl", 2),
        }
        try:
            yield from _compared(sides, cores, size.repeats)
        finally:
            for side in sides.values():
                side.stop()


def _cluster(checkpoint: Path, cores: Sequence[int], log: Path, workers: int) -> BenchServer:
    """The workers keep to a core each, the first to that of the lone server; the ingress takes the last."""
    named = ",".join(map(str, cores[:workers]))
    flags = (f"--workers={workers}", f"--cores={named}", "--policy=vtc", "--heartbeat_s=10")
    return BenchServer(checkpoint, cores, log, *flags, module="serving.cluster")


def _compared(sides: dict[str, BenchServer], cores: Sequence[int], rounds: int) -> Iterator[Row]:
    last = cores[-1:]
    for side in sides.values():
        client(side.url, last, **LOAD | {"seed": 99})
    rates: dict[str, list[float]] = {name: [] for name in sides}
    first: dict[str, list[float]] = {name: [] for name in sides}
    busy: list[float] = []
    for i in range(rounds):
        for name, side in sides.items():
            before_s = side.loop_cpu_s()
            told = client(side.url, last, **LOAD | {"seed": i})
            rates[name].append(told["all"]["output_throughput"])
            if name == "one":
                busy.append(1e6 * (side.loop_cpu_s() - before_s) / told["all"]["total_output_tokens"])
            alone = client(side.url, last, **ONE | {"seed": 100 + i})
            first[name].append(_p50_ms(alone))
    detail = f"64 streams, median of {rounds} interleaved rounds; client and ingress on the last core"
    for name, told_rates in rates.items():
        yield row("cluster", f"output of {name}", median(told_rates), "tok/s", detail)
    ratio = median(a / b for a, b in zip(rates["one"], rates["server"]))
    yield row("cluster", "one worker behind the ingress over its own server", ratio, "", detail, ">= 0.90")
    ratio = median(a / b for a, b in zip(rates["two"], rates["one"]))
    shared = "the second worker shares its core with ingress and client"
    yield row("cluster", "two workers over one", ratio, "", shared, ">= 1.7")
    more_ms = median(a - b for a, b in zip(first["one"], first["server"]))
    yield row(
        "cluster", "first token later than from its own server", more_ms, "ms", "one at a time, p50", "<= 3"
    )
    yield row(
        "cluster",
        "CPU of the ingress per streamed token, all of it",
        median(busy),
        "us",
        "its whole event loop, calls included",
    )


def _p50_ms(told: dict[str, Any]) -> float:
    value: float = told["all"]["latency_ms"]["ttft"]["median"]
    return value
