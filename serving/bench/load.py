"""Throughput: the offline protocol, shared prefixes, competing clients."""

import dataclasses
import random
import time
from collections.abc import Sequence
from typing import Any

from serving.bench import Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling


def serve(
    part: str, name: str, requests: Sequence[Request], log: list[dict[str, Any]] | None = None, **more: Any
) -> list[Row]:
    """Submits all requests at the start and serves them; rates and the engine's own figures.

    Args:
      more: fields of EngineConfig.
    """
    from serving.engine.engine import Engine

    max_tok = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
    given: dict[str, Any] = {
        "max_slots": 16,
        "prefill_rows": (4,),
        "limits": Limits(chunk_tok=64, step_tok=256),
        **more,
    }
    record = log.append if log is not None else (lambda event: None)
    shape = max_tok, bool(more.get("overlap"))
    engine = Engine(
        network(), EngineConfig(max_request_tok=max_tok, **given), programs=_programs.get(shape), log=record
    )
    _programs[shape] = engine.programs
    start = time.perf_counter()
    engine.run(requests)
    seconds, stats = time.perf_counter() - start, engine.stats()
    busy = stats.host_s + stats.device_s
    rows = [
        row(part, f"{name}: output", stats.output_tok / seconds, "tok/s", f"{len(requests)} requests"),
        row(part, f"{name}: total", (stats.prompt_tok + stats.output_tok) / seconds, "tok/s"),
        row(part, f"{name}: slots busy in a decode step", stats.occupancy, ""),
        row(part, f"{name}: hit rate", stats.hit_rate, ""),
        row(part, f"{name}: host share of step time", stats.host_s / busy, ""),
    ]
    return rows


_programs: dict[tuple[int, bool], Any] = {}  # compiled programs by what they depend on, reused


def protocol(size: Size, seed: int = 0) -> list[Request]:
    """Requests of four clients, prompt and output lengths uniform in 100..1024 tokens times `size.scale`."""
    rng = random.Random(seed)
    low, high = max(2, int(100 * size.scale)), int(1024 * size.scale)
    return [
        Request(
            client="abcd"[i % 4],
            id=f"q{i}",
            prompt_ids=prompt(rng, rng.randint(low, high)),
            sampling=Sampling(max_tokens=rng.randint(low, high), ignore_eos=True),
        )
        for i in range(size.requests)
    ]


def offline(size: Size) -> list[Row]:
    """The offline protocol with and without overlapped scheduling."""
    requests = protocol(size)
    rows: list[Row] = []
    for name, overlap in (("in turn", False), ("overlap", True)):
        rows += serve("offline", name, requests, overlap=overlap)
    return rows


def shared(size: Size) -> list[Row]:
    """Groups of requests that share a system prompt, with and without the prefix cache."""
    rng = random.Random(1)
    prefix_tok = max(32, int(512 * size.scale))
    prefixes = [prompt(rng, prefix_tok) for _ in range(16)]
    requests = [
        Request(
            client=f"c{i % 16}",
            id=f"q{i}",
            prompt_ids=prefixes[i % 16] + prompt(rng, max(4, prefix_tok // 8)),
            sampling=Sampling(max_tokens=max(4, prefix_tok // 8), ignore_eos=True),
        )
        for i in range(size.requests)
    ]
    rows: list[Row] = []
    for name, reuse in (("no cache", False), ("cache", True)):
        rows += serve("shared", name, requests, reuse=reuse)
    rates = [r["value"] for r in rows if r["figure"].endswith("total")]
    return [*rows, row("shared", "cache over no cache", rates[1] / rates[0], "", "tokens/s", "> 1")]


def clients(size: Size) -> list[Row]:
    """A flooding client beside a modest one, under fcfs and vtc."""
    from serving.fair import metrics

    requests = protocol(size, seed=2)
    flood = [dataclasses.replace(r, client="flood" if i % 8 else "modest") for i, r in enumerate(requests)]
    rows: list[Row] = []
    gaps = []
    for policy in ("fcfs", "vtc"):
        log: list[dict[str, Any]] = []
        served = serve("clients", policy, flood, log, policy=policy)
        report = metrics.report(log)
        rows += served[:1]
        rows.append(row("clients", f"{policy}: largest gap of waiting clients", report.gap, "tok"))
        wait = metrics.percentile(report.ttft_s["modest"], 90)
        rows.append(row("clients", f"{policy}: modest client's TTFT p90", wait, "s"))
        gaps.append(report.gap)
    return [*rows, row("clients", "vtc over fcfs: largest gap", gaps[1] / gaps[0], "", goal="< 1")]
