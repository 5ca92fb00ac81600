"""Figures of a run: throughput, latencies, goodput, and what the client itself cost.

Definitions are those of vLLM's client: TTFT from sending to the first text, TPOT the mean time of each later
token, goodput the requests/s that meet every bound. Latencies leave failed requests out, counts do not.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from serving.bench.client.calls import CallRecord
from serving.bench.client.load import LoadCost

METRICS = ("ttft", "tpot", "itl", "gap", "e2el")
BUSY_CORE = 0.8  # above this share of a core the client may be what limits


def parse_goodput(text: Sequence[str]) -> dict[str, float]:
    """Bounds in ms from words like ttft:500.

    Raises:
      ValueError: not such a word.
    """
    bounds = {}
    for word in " ".join(text).replace(",", " ").split():
        name, _, value = word.partition(":")
        try:
            bounds[name] = float(value)
        except ValueError:
            raise ValueError(f"--goodput has {word!r}; write bounds in ms like ttft:500 tpot:50") from None
        if name not in ("ttft", "tpot", "e2el"):
            raise ValueError(f"--goodput bounds {name!r}; it may bound ttft, tpot and e2el")
    return bounds


def samples_ms(records: Iterable[CallRecord]) -> dict[str, list[float]]:
    """Milliseconds by metric.

    `gap` is between events with text. An event may carry several tokens and does not say how many, so `itl`
    divides a gap by the answer's mean number of tokens per event and counts it as often.
    """
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for record in records:
        found["ttft"].append(1e3 * record.ttft_s)
        found["e2el"].append(1e3 * record.e2e_s)
        if record.output_tok > 1:
            found["tpot"].append(1e3 * record.tpot_s)
        gaps = record.gaps_s
        found["gap"] += [1e3 * gap for gap in gaps]
        each = max(1, round((record.output_tok - 1) / len(gaps))) if gaps else 1
        found["itl"] += [1e3 * gap / each for gap in gaps for _ in range(each)]
    return found


def spread(values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, standard deviation, maximum and percentiles; empty without values."""
    if not values:
        return {}
    array = np.asarray(values)
    told = {"mean": array.mean(), "median": np.median(array), "std": array.std(), "max": array.max()}
    told |= {f"p{p:g}": np.percentile(array, p) for p in percentiles}
    return {name: round(float(value), 4) for name, value in told.items()}


def peak_in_flight(records: Iterable[CallRecord]) -> int:
    """The most requests that were on their way at once, each from sending up to its end."""
    changes = sorted(edge for r in records for edge in ((r.sent_s, 1), (r.end_s, -1)))
    at_once = most = 0
    for _, change in changes:
        at_once += change
        most = max(most, at_once)
    return most


def figures(
    records: Sequence[CallRecord],
    percentiles: Sequence[float],
    bounds: dict[str, float],
    metrics: Sequence[str] = METRICS,
) -> dict[str, Any]:
    """The figures of some requests. Rates are over the time from the first sent to the last answered."""
    good = [r for r in records if not r.error]
    begun_s = min((r.sent_s for r in records), default=0.0)
    seconds = max((r.end_s for r in records), default=0.0) - begun_s
    per_s = 1 / seconds if seconds > 0 else 0.0
    prompt_tok, output_tok = sum(r.prompt_tok for r in good), sum(r.output_tok for r in good)
    told: dict[str, Any] = {
        "requests": len(records),
        "completed": len(good),
        "failed": len(records) - len(good),
        "duration_s": seconds,
        "total_input_tokens": prompt_tok,
        "total_output_tokens": output_tok,
        "cached_tokens": sum(r.cached_tok for r in good),
        "request_throughput": len(good) * per_s,
        "output_throughput": output_tok * per_s,
        "total_token_throughput": (prompt_tok + output_tok) * per_s,
        "max_concurrent_requests": peak_in_flight(records),
        "errors": _most_common(r.error for r in records if r.error),
    }
    if bounds:
        told["request_goodput"] = sum(_meets(r, bounds) for r in good) * per_s
    samples = samples_ms(good)
    told["latency_ms"] = {name: spread(samples[name], percentiles) for name in metrics}
    told["client_queue_ms"] = spread([1e3 * (r.sent_s - r.due_s) for r in good], percentiles)
    return told


def _meets(record: CallRecord, bounds: dict[str, float]) -> bool:
    took = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.e2e_s}
    return all(1e3 * took[name] <= bound for name, bound in bounds.items())


def _most_common(errors: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for error in errors:
        counts[error] = counts.get(error, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:10])


def own_cost(cost: LoadCost, records: Sequence[CallRecord]) -> dict[str, Any]:
    """What the client took; with `core_share` near 1 the figures are rather its own than the server's."""
    events = sum(r.events for r in records)
    share = cost.cpu_s / cost.wall_s if cost.wall_s else 0.0
    return {
        "cpu_s": cost.cpu_s,
        "core_share": share,
        "cpu_us_per_event": 1e6 * cost.cpu_s / events if events else 0.0,
        "events": events,
        "sent_late_ms": spread([1e3 * late for late in cost.late_s], [99]),
        "may_be_the_bottleneck": share > BUSY_CORE,
    }
