"""How many tokens a second: the offline protocol, shared prefixes, clients that compete."""

import dataclasses
import random
import time
from collections.abc import Sequence
from typing import Any

from serving.bench import Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling


def serve(
    part: str, name: str, requests: Sequence[Request], log: list | None = None, **more: Any
) -> tuple[list[Row], Any]:
    """Serves all at once; rates, and what the engine says of itself."""
    from serving.engine.engine import Engine

    longest = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
    given: dict[str, Any] = {
        "max_slots": 16,
        "prefill_rows": (4,),
        "limits": Limits(chunk_tok=64, step_tok=256),
        **more,
    }
    hear = log.append if log is not None else (lambda event: None)
    programs = _shared.get((longest, bool(more.get("overlap"))))
    engine = Engine(network(), EngineConfig(max_request_tok=longest, **given), programs=programs, log=hear)
    _shared[longest, bool(more.get("overlap"))] = engine.programs
    began = time.perf_counter()
    engine.run(requests)
    seconds, stats = time.perf_counter() - began, engine.stats()
    busy = stats.host_s + stats.device_s
    rows = [
        row(part, f"{name}: output", stats.output_tok / seconds, "tok/s", f"{len(requests)} requests"),
        row(part, f"{name}: total", (stats.prompt_tok + stats.output_tok) / seconds, "tok/s"),
        row(part, f"{name}: slots busy in a decode step", stats.occupancy, ""),
        row(part, f"{name}: hit rate", stats.hit_rate, ""),
        row(part, f"{name}: host share of step time", stats.host_s / busy, ""),
    ]
    return rows, stats


_shared: dict[Any, Any] = {}


def protocol(size: Size, seed: int = 0) -> list[Request]:
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
    requests = protocol(size)
    rows: list[Row] = []
    for name, overlap in (("in turn", False), ("overlap", True)):
        more, _ = serve("offline", name, requests, overlap=overlap)
        rows += more
    return rows


def shared(size: Size) -> list[Row]:
    rng = random.Random(1)
    stem_tok = max(32, int(512 * size.scale))
    stems = [prompt(rng, stem_tok) for _ in range(16)]
    requests = [
        Request(
            client=f"c{i % 16}",
            id=f"q{i}",
            prompt_ids=stems[i % 16] + prompt(rng, max(4, stem_tok // 8)),
            sampling=Sampling(max_tokens=max(4, stem_tok // 8), ignore_eos=True),
        )
        for i in range(size.requests)
    ]
    rows: list[Row] = []
    for name, reuse in (("no cache", False), ("cache", True)):
        more, _ = serve("shared", name, requests, reuse=reuse)
        rows += more
    rates = [r["value"] for r in rows if r["figure"].endswith("total")]
    return [*rows, row("shared", "cache over no cache", rates[1] / rates[0], "", "tokens/s", "> 1")]


def clients(size: Size) -> list[Row]:
    from serving.fair import metrics

    requests = protocol(size, seed=2)
    flood = [dataclasses.replace(r, client="flood" if i % 8 else "modest") for i, r in enumerate(requests)]
    rows: list[Row] = []
    gaps = []
    for policy in ("fcfs", "vtc"):
        log: list[dict[str, Any]] = []
        more, _ = serve("clients", policy, flood, log, policy=policy)
        report = metrics.report(log)
        rows += more[:1]
        rows.append(row("clients", f"{policy}: largest gap of waiting clients", report.gap, "tok"))
        wait = metrics.percentile(report.ttft_s["modest"], 90)
        rows.append(row("clients", f"{policy}: modest client's TTFT p90", wait, "s"))
        gaps.append(report.gap)
    return [*rows, row("clients", "vtc over fcfs: largest gap", gaps[1] / gaps[0], "", goal="< 1")]
