"""Serves a model by OpenAI's HTTP protocol from many engines behind one front door, fair by client (D2LPM).

    python -m serving.cluster --checkpoint=runs/demo/model --workers=3         on port 8000
    python -m serving.cluster --checkpoint=models/smollm2 --workers=2 --kv_memory=512MiB --cores=0,1
    python -m serving.cluster --checkpoint=runs/demo/model --port=8000 --router=rr            what D2LPM saves
    python -m serving.cluster --checkpoint=runs/demo/model --port=8000 --router_option=quantum_tok=2000
    python -m serving.cluster --checkpoint=runs/demo/model --port=8000 --workers=1 --max_workers=4
    python -m serving.cluster --checkpoint=runs/demo/model --port=8000 --transport=ray        (extra: cluster)
    curl http://127.0.0.1:8000/cluster/workers                     who works; POST starts one more
    curl http://127.0.0.1:8000/cluster/drain -H "Content-Type: application/json" -d '{"worker": 2}'

Everything that `python -m serving.http` serves is served here, in the same way and under the same flags;
those of the model (--slots, --kv_memory, --engine.FIELD=VALUE, --policy) are each worker's. The command
starts the workers, waits until all can serve, and prints `ready URL model NAME, N workers`. The first
compiles, the others start from what it left in the cache.

This process alone decides who gets which worker (--router) and who waits while none has room (--queue).
A worker that dies, hangs or is silent for --heartbeat_s is replaced, and what it ran goes on elsewhere with
the tokens that were sent already: the client's stream is the same as if nothing had happened. After
--max_tries workers an output ends with an error. While no worker is up, requests and /health get 503.

Workers listen on unix sockets in a private folder and end with this process. Ctrl-C or SIGTERM drains, a
second one ends at once. /dashboard shows a lane for each worker; /metrics has sums, and figures by worker.
--decision_log=FILE writes every decision; `python -m serving.simulate --decisions=FILE` repeats them.
"""

import os
import sys
from pathlib import Path
from typing import Any

from absl import flags, logging

from mixattn.tools import cli, collector
from serving import fair
from serving.cluster.autoscaler import ScalingRule
from serving.cluster.options import ROUTERS, TRANSPORTS, ClusterOptions, with_weights
from serving.cluster.workers import WorkerTimes
from serving.http import command
from serving.http.settings import HELP, HttpLimits
from serving.sim.trace_experiment import parse_options

PORT = 8000

command.define_flags(HttpLimits, HELP)
_WORKERS = flags.DEFINE_integer("workers", 3, "Workers to start with.", lower_bound=1)
_TRANSPORT = flags.DEFINE_enum(
    "transport", "http", TRANSPORTS, "http: processes here; ray: actors of a Ray cluster."
)
_ROUTER = flags.DEFINE_enum("router", "d2lpm", list(ROUTERS), "Who gets which worker.")
_ROUTER_OPTION = flags.DEFINE_multi_string("router_option", [], "NAME=VALUE for the router; may be repeated.")
_QUEUE = flags.DEFINE_string(
    "queue", None, "Policy of what waits here while no worker has room: vtc by default, hvtc with --api_keys."
)
_MAX_LIVE = flags.DEFINE_float(
    "max_live",
    2.0,
    "Outputs a worker may have at once, as a multiple of its slots; the others wait here.",
    lower_bound=0.01,
)
_TRIES = flags.DEFINE_integer(
    "max_tries", 3, "Workers that an output may be lost by before it fails.", lower_bound=1
)
_HEARTBEAT = flags.DEFINE_float(
    "heartbeat_s", 2.0, "Silence after which a worker counts as lost.", lower_bound=0.1
)
_GRACE = flags.DEFINE_float(
    "grace_s", 5.0, "How long a silent worker may come back before it is replaced.", lower_bound=0
)
_CORES = flags.DEFINE_list("cores", [], "CPU cores of the workers, by turns, e.g. 0,1; any by default.")
_MOST = flags.DEFINE_integer(
    "max_workers", 0, "Start workers up to this number while outputs wait, and drain them when idle; 0 = off."
)
_COOL = flags.DEFINE_float(
    "cool_down_s", 30.0, "Between two changes of the number of workers.", lower_bound=0
)
_DECISIONS = flags.DEFINE_string(
    "decision_log", None, "File for the router's decisions, one JSON object a line."
)


def main() -> None:
    given = flags.FLAGS
    if given.port is None:
        given.port = PORT
    if given.policy is None:
        given.policy = "dlpm"
    elif given.policy not in fair.POLICIES:
        raise ValueError(f"unknown policy {given.policy!r}; known: {', '.join(fair.POLICIES)}")
    queue = _QUEUE.value or ("hvtc" if given.api_keys else "vtc")
    if queue not in fair.POLICIES:
        raise ValueError(f"unknown policy {queue!r} of --queue; known: {', '.join(fair.POLICIES)}")
    weights = command.key_weights()
    cluster = ClusterOptions(
        workers=_WORKERS.value,
        transport=_TRANSPORT.value,
        router=_ROUTER.value,
        router_options=with_weights(ROUTERS[_ROUTER.value], parse_options(_ROUTER_OPTION.value), weights),
        queue=queue,
        queue_options=with_weights(queue, {}, weights),
        max_live=_MAX_LIVE.value,
        max_tries=_TRIES.value,
        cores=_cores(_CORES.value),
        times=WorkerTimes(heartbeat_s=_HEARTBEAT.value, grace_s=_GRACE.value, step_s=given.limit_watchdog_s),
        scaling=_scaling(),
        decision_log=Path(_DECISIONS.value) if _DECISIONS.value else None,
    )

    collector.collect_rarely()

    def assemble(*more: Any) -> Any:
        from serving.cluster.assembly import ClusterAssembly

        return ClusterAssembly(cluster, command.override_words(), *more)

    sys.exit(command.serve(assemble, engines=max(cluster.workers, _MOST.value)))


def _scaling() -> ScalingRule | None:
    if not _MOST.value:
        return None
    if _MOST.value < _WORKERS.value:
        raise ValueError(f"--max_workers={_MOST.value} is less than --workers={_WORKERS.value}")
    return ScalingRule(min_workers=_WORKERS.value, max_workers=_MOST.value, cool_down_s=_COOL.value)


def _cores(words: list[str]) -> list[int]:
    able = sorted(os.sched_getaffinity(0))
    for word in words:
        if not word.isdigit() or int(word) not in able:
            raise ValueError(f"--cores names {word!r}; this machine offers {', '.join(map(str, able))}")
    return [int(word) for word in words]


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    cli.run(main, command.split_overrides(sys.argv))
