"""What the server costs over the engine: throughput, first token, event loop, many streams, slow clients.

Server, engine and client are processes of their own on the same cores; what is compared runs interleaved.
Every figure is yielded as soon as it is measured.
"""

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from serving.bench import Row, Size, row
from serving.bench.http_loop import echo, loop_cpu, slow_loris
from serving.bench.http_sides import BenchEngine, BenchServer, client, write_checkpoint

SLOTS = 16  # the server's default
LOAD = {"num_prompts": 64, "random_input_len": 64, "random_output_len": 64}
MANY = {"num_prompts": 1000, "random_input_len": 32, "random_output_len": 32}
FEW = MANY | {"num_prompts": 128, "max_concurrency": SLOTS}
ONE = {"num_prompts": 12, "random_input_len": 64, "random_output_len": 8, "max_concurrency": 1}
REAL = {"num_prompts": 16, "random_input_len": 32, "random_output_len": 32}
REAL_MODEL = Path("models/smollm2")


def http_(size: Size) -> Iterator[Row]:
    """All figures of the server: on two cores, on one, and of a real model where `make model` fetched it."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        yield from _most(checkpoint, Path(folder) / "most.jsonl", cores[:2], size)
        if len(cores) > 1:
            yield from _one_core(checkpoint, Path(folder) / "one.jsonl", cores[:1], size)
        yield from _stepwise(checkpoint, Path(folder) / "step.jsonl", cores[:2])
        if (REAL_MODEL / "config.json").exists():
            yield from _real(Path(folder) / "real.jsonl", cores[:2])


def _most(checkpoint: Path, log: Path, cores: Sequence[int], size: Size) -> Iterator[Row]:
    """What one server and one engine are measured by together."""
    goal = ">= 0.90" if len(cores) > 1 else ">= 0.80"
    server, engine = BenchServer(checkpoint, cores, log), BenchEngine(checkpoint, cores)
    try:
        _one_round(server, engine, LOAD | {"seed": 99})  # warms both
        compiled = server.stats()["programs"]
        yield from _throughput(server, engine, "64 streams", LOAD, size.repeats, goal)
        told = {
            "one": client(server.url, cores, '--extra_request_body={"user": "one"}', **ONE),
            "many": client(server.url, cores, '--extra_request_body={"user": "many"}', **LOAD),
        }
        yield loop_cpu(server, LOAD, "at the default steps", "<= 25")
        yield echo(server, 5 + size.repeats)
        yield from slow_loris(server, LOAD, size.repeats)
        yield from _thousand(server, engine, goal)
        more = server.stats()["programs"] - compiled
        yield row("http", "programs compiled after start", more, "", goal="= 0")
    finally:
        engine.stop()
        events = server.stop()
    yield from _first_token(events, told)


def _one_core(checkpoint: Path, log: Path, cores: Sequence[int], size: Size) -> Iterator[Row]:
    server, engine = BenchServer(checkpoint, cores, log), BenchEngine(checkpoint, cores)
    try:
        _one_round(server, engine, LOAD | {"seed": 99})
        yield from _throughput(server, engine, "64 streams", LOAD, size.repeats, ">= 0.80")
        many = MANY | {"random_output_len": 16}
        yield from _throughput(server, engine, "1,000 streams", many, 1, ">= 0.80")
    finally:
        engine.stop()
        server.stop()


def _real(log: Path, cores: Sequence[int]) -> Iterator[Row]:
    """The same of a model of 135 million parameters, where a step takes longer and the server less of it."""
    server, engine = BenchServer(REAL_MODEL, cores, log), BenchEngine(REAL_MODEL, cores)
    try:
        yield from _throughput(server, engine, "SmolLM2-135M, 16 streams", REAL, 1, ">= 0.90")
    finally:
        engine.stop()
        server.stop()


def _one_round(
    server: BenchServer, engine: BenchEngine, load: dict[str, int]
) -> tuple[dict[str, Any], float]:
    """What the client tells of this load, and output tokens/s of `engine.run` on the same requests."""
    return client(server.url, server.cores, **load), engine.output_tok_per_s(**load)


def _throughput(
    server: BenchServer, engine: BenchEngine, name: str, load: dict[str, int], rounds: int, goal: str
) -> Iterator[Row]:
    """Output tokens/s through HTTP over those of `engine.run` on the same requests, interleaved."""
    found = [_one_round(server, engine, load | {"seed": i}) for i in range(rounds)]
    yield from _rates(server, name, found, goal)


def _rates(
    server: BenchServer, name: str, found: Sequence[tuple[dict[str, Any], float]], goal: str
) -> Iterator[Row]:
    cores = len(server.cores)
    what = f"{name} on {cores} core{'s' * (cores > 1)}"
    through = [told["all"]["output_throughput"] for told, _ in found]
    bare = [rate for _, rate in found]
    share = median(told["this_client"]["core_share"] for told, _ in found)
    yield row(
        "http", f"{what}: output through HTTP", median(through), "tok/s", f"client {share:.0%} of a core"
    )
    yield row("http", f"{what}: output of engine.run", median(bare), "tok/s", f"{server.slots()} slots")
    ratio = median(a / b for a, b in zip(through, bare))
    rounds = f"median of {len(found)} interleaved rounds" if len(found) > 1 else "one round"
    yield row("http", f"{what}: HTTP over engine.run", ratio, "", rounds, goal)


def _thousand(server: BenchServer, engine: BenchEngine, goal: str) -> Iterator[Row]:
    """A thousand streams at once: who is answered, how even the running ones' events come beside sixteen."""
    before, ratios, found = server.resident_mib(), [], []
    for i in range(2):
        few = client(server.url, server.cores, **FEW | {"seed": 10 + i})
        found.append(_one_round(server, engine, MANY | {"seed": 20 + i}))
        many = found[-1][0]["all"]
        ratios.append(_p99_ms(many) / _p99_ms(few["all"]))
    yield from _rates(server, "1,000 streams", found, goal)
    failed = f"{many['failed']} failed"
    yield row("http", "1,000 streams: answered", many["completed"], "", failed, "= 1000")
    figure = "1,000 streams: p99 between events over that at 16"
    yield row("http", figure, median(ratios), "", f"{_p99_ms(many):.1f} ms", "<= 1.3")
    grown = server.resident_mib("VmHWM") - before
    yield row("http", "1,000 streams: resident memory more", grown, "MiB", "peak since start", "<= 150")


def _p99_ms(told: dict[str, Any]) -> float:
    value: float = told["latency_ms"]["gap"]["p99"]
    return value


def _stepwise(checkpoint: Path, log: Path, cores: Sequence[int]) -> Iterator[Row]:
    server = BenchServer(checkpoint, cores, log, "--engine.limits.decode_steps=[1]")
    try:
        client(server.url, cores, **LOAD)
        yield loop_cpu(server, LOAD, "at one token an event", "<= 80")
    finally:
        server.stop()


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
