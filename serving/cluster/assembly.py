"""What the HTTP server consists of where a cluster computes: the workers' start and end, routes, metrics."""

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mixattn import hf
from serving import fair
from serving.cluster.autoscaler import Autoscaler
from serving.cluster.backend import WorkerCluster
from serving.cluster.decisions import recorded
from serving.cluster.http_worker import HttpWorker
from serving.cluster.ingress import Ingress
from serving.cluster.lanes import FILES, cluster_figures
from serving.cluster.options import ROUTERS, ClusterOptions
from serving.cluster.worker_metrics import WorkerMetrics
from serving.cluster.workers import WorkerHandle, WorkerSlot
from serving.fair.routers.base import Router
from serving.http import reading
from serving.http.backend import Deliver
from serving.http.credentials import secret_of
from serving.http.errors import ApiError, bad_field
from serving.http.fairness import LiveFairness
from serving.http.options import StartOptions
from serving.http.page import Dashboard
from serving.http.process import Override, say
from serving.http.service import Service
from serving.http.settings import HttpLimits
from serving.http.startup import configured, served_model

WAIT_S = 0.05
BLOCK_TOK = 32  # of the router's prefixes, in whole pages: smaller ones make a dispatch longer


class ClusterAssembly:
    """See the module, and `serving.http.process.Assembly`.

    Args:
      overrides: words like --engine.FIELD=VALUE, for the workers.
    """

    def __init__(
        self,
        cluster: ClusterOptions,
        overrides: list[str],
        options: StartOptions,
        limits: HttpLimits,
        override: Override,
    ) -> None:
        self._cluster_options, self._overrides = cluster, overrides
        self._options, self._limits, self._override = options, limits, override
        self._folder = Path(tempfile.mkdtemp(prefix="mixattn-"))  # mode 0700
        self._files = contextlib.ExitStack()

    def backend(self, deliver: Deliver) -> WorkerCluster:
        given = self._cluster_options
        page_tok = self._override(configured(self._options)).page_size
        block_tok = page_tok * max(1, BLOCK_TOK // page_tok)
        queue = fair.make(given.queue, **given.queue_options)
        ingress = Ingress(self._router(), queue, block_tok=block_tok, max_tries=given.max_tries)
        self.cluster = WorkerCluster(
            deliver,
            ingress,
            self._handle_maker(),
            given.times,
            max_live=given.max_live,
            scaler=None if given.scaling is None else Autoscaler(given.scaling),
            described=given.described(),
        )
        return self.cluster

    def routes(self, service: Service) -> list[Route]:
        fairness = LiveFairness()
        self.cluster.listeners.append(fairness.take)
        service.metrics.registry.register(WorkerMetrics(self.cluster, self._options.name))
        page = Dashboard(service, cluster_figures(self.cluster, fairness, service), FILES)
        return [*page.routes(), *WorkerControl(service, self.cluster).routes()]

    async def start(self, service: Service) -> None:
        """Starts the first worker, and the others once it has compiled what they find in the cache then."""
        config = self._override(configured(self._options))
        model = await asyncio.to_thread(served_model, self._options, config, self._limits, say)
        read = hf.read_config(self._options.checkpoint)
        self.cluster.open(read, config, decodes=model.prompts.tokenizer is not None)
        await self._ready(self.cluster.add())
        others = [self.cluster.add() for _ in range(self._cluster_options.workers - 1)]
        await asyncio.gather(*map(self._ready, others))
        service.model = model

    def ready(self) -> str:
        given = self._cluster_options
        return f", {given.workers} workers ({given.transport}), router {given.router}"

    async def end(self) -> None:
        await self.cluster.end()
        self._files.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _ready(self, slot: WorkerSlot) -> None:
        """Raises ValueError if the worker cannot start."""
        while not slot.up:
            if slot.state == "lost":
                raise ValueError(f"worker {slot.place} cannot serve: {slot.why}")
            await asyncio.sleep(WAIT_S)
        say(f"worker {slot.place} is up")

    def _router(self) -> Router:
        given = self._cluster_options
        name = ROUTERS[given.router]
        if given.decision_log is None:
            made: Router = fair.make(name, **given.router_options)
            return made
        out = self._files.enter_context(given.decision_log.open("w", buffering=1 << 16))

        def write(event: dict[str, Any]) -> None:
            out.write(json.dumps(event) + "\n")

        return recorded(name, given.router_options, write)

    def _handle_maker(self) -> Callable[[int], WorkerHandle]:
        given, options, overrides, folder = (
            *(self._cluster_options, self._options, self._overrides),
            self._folder,
        )
        beat_s, step_s = given.times.heartbeat_s / 4, given.times.step_s
        if given.transport == "ray":
            from serving.cluster.ray_worker import RayCluster

            return RayCluster(options, overrides, beat_s=beat_s).worker

        def make(place: int) -> HttpWorker:
            cores = [given.cores[place % len(given.cores)]] if given.cores else []
            return HttpWorker(place, folder, options, overrides, beat_s=beat_s, step_s=step_s, cores=cores)

        return make


class WorkerControl:
    """`/cluster/workers`: who works, one more, one less. With keys, for those of an administrator."""

    def __init__(self, service: Service, cluster: WorkerCluster) -> None:
        self._service, self._cluster = service, cluster

    def routes(self) -> list[Route]:
        return [
            Route("/cluster/workers", self.show, methods=["GET"]),
            Route("/cluster/workers", self.add, methods=["POST"]),
            Route("/cluster/drain", self.drain, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        self._service.key_of(secret_of(request.headers))
        running = Counter(live.worker for live in self._cluster.ingress.live.values())
        shown = [
            {**_shown(slot), "live": running[slot.number] if slot.number is not None else 0}
            for slot in self._cluster.slots.values()
        ]
        return JSONResponse({"workers": shown})

    async def add(self, request: Request) -> Response:
        self._allow(request)
        return JSONResponse(_shown(self._cluster.add()), status_code=202)

    async def drain(self, request: Request) -> Response:
        self._allow(request)
        fields = await reading.fields(request, self._service.limits)
        place = fields.raw("worker")
        if not isinstance(place, int) or place not in self._cluster.slots:
            known = ", ".join(map(str, self._cluster.slots))
            raise bad_field("worker", f"worker must be one of {known}")
        slot = self._cluster.slots[place]
        self._cluster.drain(place)
        return JSONResponse(_shown(slot), status_code=202)

    def _allow(self, request: Request) -> None:
        key = self._service.key_of(secret_of(request.headers))
        if key is not None and not key.admin:
            raise ApiError(403, "this key may not change the workers", code="forbidden")


def _shown(slot: WorkerSlot) -> dict[str, Any]:
    return {
        "worker": slot.place,
        "state": slot.state,
        "pid": slot.hello.get("pid"),
        "starts": slot.starts,
        "losses": slot.losses,
        "why": slot.why or None,
    }
