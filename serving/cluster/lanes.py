"""What the cluster's page shows: a lane per worker, with who runs what there, hits, and credit by client."""

from collections.abc import Awaitable, Callable
from typing import Any

from serving.cluster.backend import WorkerCluster
from serving.cluster.workers import WorkerSlot
from serving.fair.ledger import SCALE
from serving.fair.routers.d2lpm import D2lpm
from serving.http.fairness import LiveFairness
from serving.http.metrics import MAX_CLIENTS
from serving.http.service import Service
from serving.request import ClientId

FILES = {
    "": ("serving.cluster", "cluster.html"),
    "cluster.css": ("serving.cluster", "cluster.css"),
    "cluster.js": ("serving.cluster", "cluster.js"),
    "dashboard.css": ("serving.http", "dashboard.css"),
    "parts.js": ("serving.http", "parts.js"),
}
MAX_SHOWN = 12  # clients of a lane, and columns of the table of credit
MAX_LANES = 64


def cluster_figures(
    cluster: WorkerCluster, fairness: LiveFairness, service: Service
) -> Callable[[], Awaitable[dict[str, Any]]]:
    """What the page of a cluster shows."""

    async def figures() -> dict[str, Any]:
        stats = await cluster.stats()
        ingress, router = cluster.ingress, cluster.ingress.router
        by_service = sorted(fairness.served.items(), key=lambda item: -item[1])
        shown = [name for name, _ in by_service[:MAX_SHOWN]]
        running = _running(cluster)
        slots = list(cluster.slots.values())
        return {
            "running": stats.running,
            "waiting": stats.waiting,
            "queued": cluster.waiting,
            "slots": stats.slots,
            "hit_rate": stats.hit_rate,
            "finished": stats.finished,
            "router": type(router).__name__.removeprefix("Recorded"),
            "again": ingress.counts.again,
            "replicated": getattr(router, "replicated", None),
            "lost": ingress.counts.failed,
            "gap": fairness.gap,
            "clients": [
                {
                    "name": name,
                    "served": round(served),
                    "running": fairness.running.get(name, 0),
                    "waiting": fairness.waiting.get(name, 0),
                    "credit": _credits(cluster, name) if name in shown else None,
                }
                for name, served in by_service[:MAX_CLIENTS]
            ],
            "more_clients": max(0, len(by_service) - MAX_CLIENTS),
            "lanes": [_lane(cluster, slot, running.get(slot.place, {})) for slot in slots[:MAX_LANES]],
            "more_lanes": max(0, len(slots) - MAX_LANES),
        }

    return figures


def _running(cluster: WorkerCluster) -> dict[int, dict[ClientId, list[int]]]:
    """By worker and client: outputs that run there, and that wait there."""
    place_of = {slot.number: slot.place for slot in cluster.slots.values()}
    found: dict[int, dict[ClientId, list[int]]] = {}
    for live in cluster.ingress.live.values():
        if live.worker is not None:
            counts = found.setdefault(place_of[live.worker], {}).setdefault(live.request.client, [0, 0])
            counts[0 if live.admitted else 1] += 1
    return found


def _lane(cluster: WorkerCluster, slot: WorkerSlot, clients: dict[ClientId, list[int]]) -> dict[str, Any]:
    stats, router = slot.stats, cluster.ingress.router
    most = sorted(clients.items(), key=lambda item: (-sum(item[1]), item[0]))
    return {
        "worker": slot.place,
        "state": slot.state,
        "why": slot.why or None,
        "losses": slot.losses,
        "slots": slot.hello.get("slots", 0),
        "max_live": router.limit_of.get(slot.number) if slot.number is not None else None,
        "capacity": cluster.meter.capacity_of.get(slot.place),
        "hit_rate": None if stats is None else stats.hit_rate,
        "output_tok": None if stats is None else stats.output_tok,
        "clients": [{"name": name, "running": r, "waiting": w} for name, (r, w) in most[:MAX_SHOWN]],
        "more_clients": max(0, len(most) - MAX_SHOWN),
    }


def _credits(cluster: WorkerCluster, client: ClientId) -> dict[str, int] | None:
    """The client's credit at each worker that is up, in weighted tokens; None where the router has none."""
    router = cluster.ingress.router
    if not isinstance(router, D2lpm):
        return None
    up = [slot for slot in cluster.slots.values() if slot.number is not None]
    return {str(s.place): round(router.credit(client, s.number) / SCALE) for s in up if s.number is not None}
