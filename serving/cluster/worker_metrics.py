"""Metrics of the ingress and of each worker, beside those of the server, which are sums over the workers."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.cluster.backend import WorkerCluster


class WorkerMetrics(Collector):
    """Read anew at every scrape."""

    def __init__(self, cluster: WorkerCluster, model: str) -> None:
        self._cluster, self._model = cluster, model

    def collect(self) -> Iterator[Any]:
        cluster, ingress = self._cluster, self._cluster.ingress
        router, counts = ingress.router, ingress.counts
        yield self._counter("dispatches", "Outputs sent to a worker.", counts.dispatched)
        yield self._counter("redispatches", "Of those, outputs that another worker had before.", counts.again)
        yield self._counter("dropped_reports", "Reports that came late or twice.", counts.dropped)
        yield self._counter(
            "lost_outputs", "Outputs that ended with an error after all tries.", counts.failed
        )
        replicated = getattr(router, "replicated", None)
        if replicated is not None:
            text = "Dispatches that left the holders of a prefix for want of credit or room."
            yield self._counter("replicated_prefixes", text, replicated)
        if router.prefix_map is not None:
            text = "Blocks that a worker was assumed to hold and did not."
            yield self._counter("disproved_blocks", text, router.prefix_map.disproved)
            yield self._gauge(
                "routed_blocks", "Blocks of prompts in the router's tree.", len(router.prefix_map)
            )
        yield self._gauge("ingress_waiting", "Outputs that have no worker.", cluster.waiting)
        yield from self._of_workers()

    def _of_workers(self) -> Iterator[Any]:
        cluster, slots = self._cluster, list(self._cluster.slots.values())
        router = cluster.ingress.router
        live = {s.place: router.load_of[s.number] for s in slots if s.number is not None}
        stats = {s.place: s.stats for s in slots if s.stats is not None}
        yield self._each(
            "worker_up", "Whether the worker takes requests.", ((s.place, s.state == "up") for s in slots)
        )
        yield self._each("worker_live", "Outputs the worker has.", live.items())
        yield self._each(
            "worker_capacity", "Measured speed relative to the mean.", cluster.meter.capacity_of.items()
        )
        speeds = ((s.place, cluster.meter.speed(s.place) or 0.0) for s in slots)
        yield self._each("worker_tok_per_busy_s", "Tokens per busy second, smoothed.", speeds)
        for name, text in (
            ("prompt_tok", "Prompt tokens admitted since it started."),
            ("hit_tok", "Prompt tokens found in its cache since it started."),
            ("output_tok", "Output tokens since it started."),
        ):
            yield self._each(f"worker_{name}", text, ((p, getattr(told, name)) for p, told in stats.items()))
        yield self._each("worker_losses", "Times the worker was lost.", ((s.place, s.losses) for s in slots))

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        made = CounterMetricFamily(f"mixattn:{name}", text, labels=["model_name"])
        made.add_metric([self._model], value)
        return made

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        made = GaugeMetricFamily(f"mixattn:{name}", text, labels=["model_name"])
        made.add_metric([self._model], value)
        return made

    def _each(self, name: str, text: str, values: Iterable[tuple[int, float]]) -> GaugeMetricFamily:
        made = GaugeMetricFamily(f"mixattn:{name}", text, labels=["model_name", "worker"])
        for place, value in values:
            made.add_metric([self._model, str(place)], float(value))
        return made
