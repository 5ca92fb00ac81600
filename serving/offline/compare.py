"""Serves a workload under one policy and measures it: rates, latencies, service gaps and their bound."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mixattn.cache import Ring
from mixattn.model import Transformer
from mixattn.spec import ModelConfig, kv_bytes
from serving.engine.engine import Engine
from serving.engine.programs import Programs
from serving.fair import metrics
from serving.kvcache.groups import FullGroup
from serving.offline.clients import Arrivals
from serving.offline.experiment import Serve
from serving.request import Delta, Output

# Weight of cached prompt tokens in a policy's service: DLPM does not charge them, the others do.
CACHED_WEIGHT = {"dlpm": 0.0}


@dataclasses.dataclass(frozen=True)
class PolicyReport:
    """The results of one policy.

    Attributes:
      table: figures as plain values (see `metrics.report`), with `bound` and the engine's counters.
      curves: client -> (seconds, cumulative service in weighted tokens).
      gap_curve: (seconds, largest gap so far between two backlogged clients).
      events: the scheduling log, from which the figures can be computed again.
      programs: the engine's compiled programs.
    """

    policy: str
    table: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]]
    gap_curve: list[tuple[float, float]]
    events: list[dict[str, Any]]
    outputs: list[Output]
    programs: Programs


def run(
    model: Transformer,
    serve: Serve,
    policy: str,
    documents: Sequence[Sequence[int]],
    on_delta: Callable[[Delta], None] = lambda delta: None,
    report: Callable[[str, float], None] = lambda name, seconds: None,
    programs: Programs | None = None,
) -> PolicyReport:
    """Serves the whole workload under `policy`.

    Args:
      documents: held-out texts as token ids, to cut prompts from.
      on_delta: called with every piece of output.
      report: called with each program's name and compile seconds.
      programs: compiled programs of an earlier run with the same engine config, reused.
    """
    events: list[dict[str, Any]] = []
    config = dataclasses.replace(serve.engine, policy=policy, policy_options=serve.policies[policy])
    engine = Engine(model, config, log=events.append, report=report, programs=programs)
    compiled = engine.stats().programs
    outputs = drive(engine, Arrivals(serve.workload, documents), on_delta)
    cached = CACHED_WEIGHT.get(policy, 1.0)
    weights = {c: float(w) for c, w in config.policy_options.get("weights", {}).items()}
    measured = metrics.report(events, cached=cached, weights=weights)
    stats = engine.stats()
    start_s = events[0]["t"] if events else 0.0
    table = measured.table() | {
        "bound": bound(engine, serve),
        "cached_weight": cached,
        "programs_at_start": compiled,
        "programs_at_end": stats.programs,
        "steps": stats.steps,
        "host_ms_per_step": 1e3 * stats.host_s / max(1, stats.steps),
        "device_ms_per_step": 1e3 * stats.device_s / max(1, stats.steps),
    }
    curves = {c: [(t - start_s, s) for t, s in curve] for c, curve in measured.curve.items()}
    return PolicyReport(
        policy,
        table,
        curves,
        [(t - start_s, g) for t, g in measured.gap_curve],
        events,
        outputs,
        engine.programs,
    )


def drive(engine: Engine, arrivals: Arrivals, on_delta: Callable[[Delta], None]) -> list[Output]:
    """Submits requests as they arrive and steps until all have finished; outputs in finishing order."""
    outputs: list[Output] = []
    while len(arrivals) or engine.live:
        for request in arrivals.due(len(outputs), idle=not engine.live):
            engine.submit(request)
        for delta in engine.step():
            on_delta(delta)
            if delta.output is not None:
                outputs.append(delta.output)
    return outputs


def bound(engine: Engine, serve: Serve) -> float | None:
    """The proven bound on the service gap of two backlogged clients, in weighted tokens; None without one.

    Running requests are limited by the full-attention pool, or by the slots where there is no such pool or
    requests leave it for slabs. With prefix reuse a prompt may share pages with other requests.
    """
    config = engine.config
    pools = [(g.num_pages - 1) * config.page_size for g in engine.memory.groups if isinstance(g, FullGroup)]
    memory_tok = config.max_slots * config.max_request_tok
    if engine.slabs is None:
        memory_tok = min([memory_tok, *pools])
    longest = max(c.prompt_tok[1] for c in serve.workload.clients)
    hit = longest if config.reuse else 0
    return engine.scheduler.policy.gap_bound(memory_tok=memory_tok, max_prompt_tok=longest, max_hit_tok=hit)


def kv_memory(config: ModelConfig, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """KV bytes of one request by length, measured on live cache arrays and by the formula.

    Beside `config` stands the standard pattern (every layer its own keys and values) of the same depth.
    """
    rows = []
    for name, wiring in (("this model", config.kv_wiring), ("standard", "")):
        variant = dataclasses.replace(config, kv_wiring=wiring)
        for tokens in lengths:
            live = sum(Ring.init(variant, 1, tokens).nbytes().values())
            rows.append(
                {
                    "wiring": name,
                    "tokens": tokens,
                    "live_bytes": live,
                    "formula_bytes": kv_bytes(variant, tokens, dtype=variant.dtype),
                }
            )
    return rows
