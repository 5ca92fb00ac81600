"""Serves a workload under one policy and says what came of it: rates, waiting times, gaps and their bound."""

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

# What a policy calls service: DLPM bills no token found in the cache, the others every prompt token.
CACHED_WEIGHT = {"dlpm": 0.0}


@dataclasses.dataclass(frozen=True)
class PolicyReport:
    """One policy's run.

    Attributes:
      table: figures, as plain values (see `measure.Report.table`), with `bound` and the engine's counters.
      curves: client -> (seconds, service so far in weighted tokens).
      gap_curve: (seconds, largest gap so far between clients that both waited).
      events: the log, from which all of it can be computed again.
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
      on_delta: hears every piece of output.
      report: hears each program's compile seconds.
      programs: those of an earlier run of the same engine, to share.
    """
    events: list[dict[str, Any]] = []
    config = dataclasses.replace(serve.engine, policy=policy, policy_options=serve.policies[policy])
    engine = Engine(model, config, log=events.append, report=report, programs=programs)
    compiled = engine.stats().programs
    outputs = drive(engine, Arrivals(serve.workload, documents), on_delta)
    cached = CACHED_WEIGHT.get(policy, 1.0)
    report_ = metrics.report(events, cached=cached)
    stats = engine.stats()
    start = events[0]["t"] if events else 0.0
    table = report_.table() | {
        "bound": bound(engine, serve),
        "cached_weight": cached,
        "programs_at_start": compiled,
        "programs_at_end": stats.programs,
        "steps": stats.steps,
        "host_ms_per_step": 1e3 * stats.host_s / max(1, stats.steps),
        "device_ms_per_step": 1e3 * stats.device_s / max(1, stats.steps),
    }
    curves = {c: [(t - start, s) for t, s in curve] for c, curve in report_.curve.items()}
    return PolicyReport(
        policy,
        table,
        curves,
        [(t - start, g) for t, g in report_.gap_curve],
        events,
        outputs,
        engine.programs,
    )


def drive(engine: Engine, arrivals: Arrivals, on_delta: Callable[[Delta], None]) -> list[Output]:
    """Submits what is due and steps, until nothing is left; outputs in the order they ended."""
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
    """The proven bound on the service gap of two waiting clients in this engine, in weighted tokens; or None.

    Running requests fit in the full-attention pool; where there is none, in their slots. With prefix reuse a
    prompt may lie in pages that others hold too.
    """
    config = engine.config
    pools = [(g.num_pages - 1) * config.page_size for g in engine.memory.groups if isinstance(g, FullGroup)]
    memory_tok = min([config.max_slots * config.max_request_tok, *pools])
    longest = max(c.prompt_tok[1] for c in serve.workload.clients)
    hit = longest if config.reuse else 0
    return engine.scheduler.policy.gap_bound(memory_tok=memory_tok, max_prompt_tok=longest, max_hit_tok=hit)


def kv_memory(config: ModelConfig, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """KV bytes of one request by length: read off live cache arrays, and by the formula, beside the standard
    pattern of the same depth."""
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
