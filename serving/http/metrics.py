"""Prometheus metrics under `mixattn:`, and with `compat` also under the names of vLLM and SGLang.

Counts of tokens are those of `usage`: each prompt once, outputs as they were returned.
"""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.request import Delta, Output

TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
    *(640, 2560),
)
ITL_S = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4),
    *(0.6, 0.8, 1, 2, 4, 6, 8),
)
E2E_S = (*(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),)
MAX_CLIENTS = 64  # values of the label `client`; later ones count as OTHER
OTHER = "other"
RECENT = 1024  # observations that the dashboard's quantiles are of

# ours -> names of vLLM and SGLang
GAUGES = {
    "num_requests_running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "num_requests_waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
}
COUNTERS = {
    "prompt_tokens": ("vllm:prompt_tokens", "sglang:prompt_tokens"),
    "generation_tokens": ("vllm:generation_tokens", "sglang:generation_tokens"),
    "prefix_cache_queries": ("vllm:prefix_cache_queries",),
    "prefix_cache_hits": ("vllm:prefix_cache_hits", "sglang:cached_tokens"),
    "preemptions": ("vllm:num_preemptions", "sglang:num_retracted_reqs"),
}
HISTOGRAMS = {
    "time_to_first_token_seconds": (
        TTFT_S,
        ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    ),
    "inter_token_latency_seconds": (
        ITL_S,
        ("vllm:inter_token_latency_seconds", "sglang:inter_token_latency_seconds"),
    ),
    "e2e_request_latency_seconds": (
        E2E_S,
        ("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
    ),
    "request_queue_time_seconds": (E2E_S, ("vllm:request_queue_time_seconds",)),
    "request_prefill_time_seconds": (E2E_S, ("vllm:request_prefill_time_seconds",)),
    "request_decode_time_seconds": (E2E_S, ("vllm:request_decode_time_seconds",)),
}
HELP = {
    "num_requests_running": "Outputs that run.",
    "num_requests_waiting": "Outputs that wait for a slot.",
    "prompt_tokens": "Prompt tokens as in usage: each prompt once.",
    "generation_tokens": "Output tokens as in usage.",
    "prefix_cache_queries": "Prompt tokens that were looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens that were found in the prefix cache.",
    "preemptions": "Times a running output lost its memory.",
    "time_to_first_token_seconds": "From arrival to the first token.",
    "inter_token_latency_seconds": "Between tokens; several of one step share its time.",
    "e2e_request_latency_seconds": "From arrival to the end.",
    "request_queue_time_seconds": "From arrival to admission.",
    "request_prefill_time_seconds": "From admission to the first token.",
    "request_decode_time_seconds": "From the first token to the end.",
}


class ServerMetrics:
    """All metrics of one server; on the event loop only."""

    def __init__(self, model: str, *, compat: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._model, self._compat = model, compat
        self.gauges = {n: self._make(Gauge, n, more) for n, more in GAUGES.items()}
        self.counters = {n: self._make(Counter, n, more) for n, more in COUNTERS.items()}
        self.histograms = {
            n: self._make(Histogram, n, more, buckets=buckets) for n, (buckets, more) in HISTOGRAMS.items()
        }
        one = self._labelled
        self.success = one(Counter, "request_success", "Ended outputs by reason.", "finished_reason")
        self.rejected = one(Counter, "rejected", "Refused requests by status.", "code")
        self.service = one(Counter, "service_tokens", "Tokens by client.", "client", "kind")
        self.counter_of = one(Gauge, "fairness_counter", "The policy's account of a client.", "client")
        self.kv_usage = one(Gauge, "kv_cache_usage", "Share of pages in use, by kind of layers.", "group")
        self.scored = one(
            Counter, "score_only_tokens", "Tokens sampled behind prompts that were only scored."
        )
        self.compiles = one(Gauge, "compiled_programs", "Programs of the engine; fixed after the start.")
        self.resets = one(Gauge, "engine_resets", "Times a step failed and the device state was rebuilt.")
        self.slabs = one(Gauge, "slabs", "Bytes and counts of an engine that evicts.", "what")
        self.step_s = one(Gauge, "step_seconds_sum", "Step time on the host and on the device.", "phase")
        self.throughput = one(Gauge, "gen_throughput", "Output tokens per second of the last seconds.")
        self._clients: dict[str, str] = {}
        self._last_s: dict[tuple[str, int], float] = {}  # when an output's last token came
        self.recent: dict[str, deque[float]] = {n: deque(maxlen=RECENT) for n in ("ttft", "itl")}
        self._rate: deque[tuple[float, int]] = deque(maxlen=65536)

    # ---- what happened ----

    def delta(self, delta: Delta, at_s: float, began_s: float | None) -> None:
        """Tokens arrived: time to the first since the call began, or the gap since the last."""
        count = len(delta.ids)
        name = delta.id, delta.index
        if count:
            last_s = self._last_s.get(name)
            if last_s is not None:
                gap_s = (at_s - last_s) / count
                for histogram in self.histograms["inter_token_latency_seconds"]:
                    for _ in range(count):
                        histogram.observe(gap_s)
                self.recent["itl"].append(gap_s)
            elif began_s is not None:
                self._observe("time_to_first_token_seconds", at_s - began_s)
                self.recent["ttft"].append(at_s - began_s)
            self._last_s[name] = at_s
            self._rate.append((at_s, count))
        if delta.output is not None:
            self._last_s.pop(name, None)
            self._ended(delta.output)

    def _ended(self, output: Output) -> None:
        self.success.labels(self._model, output.finish_reason).inc()
        self._observe("e2e_request_latency_seconds", output.finish_s - output.arrival_s)
        if output.admit_s >= 0:
            self._observe("request_queue_time_seconds", output.admit_s - output.arrival_s)
        if output.first_token_s >= 0:
            self._observe("request_prefill_time_seconds", output.first_token_s - output.admit_s)
            self._observe("request_decode_time_seconds", output.finish_s - output.first_token_s)

    def used(self, client: str, prompt_tok: int, hit_tok: int, output_tok: int, scored_tok: int) -> None:
        """A call is over; its usage."""
        self._add("prompt_tokens", prompt_tok)
        self._add("generation_tokens", output_tok)
        label = self.label(client)
        self.service.labels(self._model, label, "prompt").inc(prompt_tok)
        self.service.labels(self._model, label, "cached").inc(hit_tok)
        self.service.labels(self._model, label, "output").inc(output_tok)
        self.scored.labels(self._model).inc(scored_tok)

    def reject(self, status: int) -> None:
        self.rejected.labels(self._model, str(status)).inc()

    def label(self, client: str) -> str:
        """The value of the label `client`: the first clients by name, later ones together."""
        if client not in self._clients:
            if len(self._clients) >= MAX_CLIENTS:
                return OTHER
            self._clients[client] = client
        return client

    @property
    def clients(self) -> list[str]:
        """Clients that have a label of their own."""
        return list(self._clients)

    # ---- reading ----

    def set_engine(self, stats: Any, served: Mapping[str, int]) -> None:
        """Gauges and counters of the engine, from its `stats()`."""
        for name, value in (("num_requests_running", stats.running), ("num_requests_waiting", stats.waiting)):
            for gauge in self.gauges[name]:
                gauge.set(value)
        raise_to = (
            ("prefix_cache_queries", stats.prompt_tok),
            ("prefix_cache_hits", stats.hit_tok),
            ("preemptions", stats.preemptions),
        )
        for name, total in raise_to:
            self._add(name, total - self.counters[name][0]._value.get())
        for kind, (used, cached, _, pages) in stats.pages.items():
            self.kv_usage.labels(self._model, kind).set((used + cached) / max(1, pages))
        self.compiles.labels(self._model).set(stats.programs)
        self.resets.labels(self._model).set(stats.resets)
        if getattr(stats, "slab_bytes", 0):
            for what in ("slab_bytes", "votes_bytes", "evictions", "scored_tok", "snapshots", "hits_lost"):
                self.slabs.labels(self._model, what).set(getattr(stats, what))
        self.step_s.labels(self._model, "host").set(stats.host_s)
        self.step_s.labels(self._model, "device").set(stats.device_s)
        self.throughput.labels(self._model).set(self.tok_per_s())
        for client, amount in served.items():
            if client in self._clients:
                self.counter_of.labels(self._model, client).set(amount)

    def tok_per_s(self, window_s: float = 10.0) -> float:
        now_s = time.monotonic()
        while self._rate and self._rate[0][0] < now_s - window_s:
            self._rate.popleft()
        return sum(count for _, count in self._rate) / window_s

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def quantiles(self, name: str) -> dict[str, float] | None:
        """p50, p90 and p99 of the last observations of `ttft` or `itl`, in seconds; None without any."""
        values = sorted(self.recent[name])
        if not values:
            return None
        return {f"p{q}": values[min(len(values) - 1, len(values) * q // 100)] for q in (50, 90, 99)}

    # ---- inside ----

    def _make(self, kind: Any, name: str, others: tuple[str, ...], **options: Any) -> list[Any]:
        names = [f"mixattn:{name}", *(others if self._compat else ())]
        return [
            kind(n, HELP[name], ["model_name"], registry=self.registry, **options).labels(self._model)
            for n in names
        ]

    def _labelled(self, kind: Any, name: str, text: str, *labels: str) -> Any:
        return kind(f"mixattn:{name}", text, ["model_name", *labels], registry=self.registry)

    def _observe(self, name: str, value: float) -> None:
        for histogram in self.histograms[name]:
            histogram.observe(max(0.0, value))

    def _add(self, name: str, amount: float) -> None:
        for counter in self.counters[name]:
            counter.inc(max(0, amount))
