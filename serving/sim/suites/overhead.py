"""The cost of a scheduling decision with 10^2 to 10^6 waiting requests, and how it grows."""

import gc
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from serving import fair
from serving.engine.plan import RequestState
from serving.engine.scheduler import CacheLocality
from serving.kvcache.groups import FullGroup
from serving.kvcache.manager import KVCacheManager
from serving.request import RequestInfo
from serving.sim.experiment import SimulatedEngine
from serving.sim.simulator import ServingSimulation
from serving.sim.suites import table
from serving.sim.suites.table import TableRow
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.worker import Worker
from serving.sim.workload import Source, merged

SIMULATOR = "E19-simulator"
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
AGNOSTIC: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "rr": {},
    "drr": {"quantum_tok": 500},
    "vtc": {},
    "vtc_predict": {"predictor": "oracle"},
    "wvtc": {"weights": {"c1": 2}},
    "hvtc": {},
}
LOCAL: dict[str, dict[str, Any]] = {"lpm": {}, "dlpm": {"quantum_tok": 5000}}


def decision_cost(
    name: str, waiting: int, clients: int, clock: Callable[[], float], rounds: int = 400
) -> tuple[float, float]:
    """Microseconds of a decision (pick and admit), and of all policy events of a request, in a steady state.

    The events are pick, admit, two decode reports, finish, and the arrival of the next request.
    """
    rng = random.Random(0)
    policy = fair.make(name, **AGNOSTIC[name])
    infos = (
        RequestInfo(f"r{i}", f"c{rng.randrange(clients)}", i, rng.randint(10, 500), 256, rng.randint(10, 256))
        for i in range(waiting + rounds)
    )
    for _ in range(waiting):
        policy.arrive(next(infos), 0.0)
    decision_s, request_s = [], []
    gc.collect()
    gc.disable()
    for info in list(infos):
        start = clock()
        head = policy.pick(0.0)
        policy.admit(head, extend_tok=head.prompt_tok, hit_tok=0)
        decision_s.append(clock() - start)
        policy.decoded({head.id: 8})
        policy.decoded({head.id: 8})
        policy.finish(head.id)
        policy.arrive(info, 0.0)
        request_s.append(clock() - start)
    gc.enable()
    return 1e6 * median(decision_s), 1e6 * median(request_s)


def pass_cost(name: str, waiting: int, clock: Callable[[], float], rounds: int = 60) -> tuple[float, float]:
    """Microseconds of the pick in an admission pass, and of the whole pass, with a real prefix tree.

    In a pass a request starts, its prompt enters the cache, affected requests are matched again and the
    next request arrives.
    """
    rng = random.Random(0)
    page = 16
    memory = KVCacheManager([FullGroup(400_000)], page_tok=page, max_slots=64, max_tok=4096, span_tok=4096)
    state_of: dict[str, RequestState] = {}
    policy = fair.make(name, match=CacheLocality(memory, state_of), **LOCAL[name])
    reqs = [_request(i, rng) for i in range(waiting + rounds)]
    for req in reqs[:waiting]:
        state_of[req.info.id] = req
        policy.arrive(req.info, 0.0)
    pick_s, pass_s = [], []
    gc.collect()
    gc.disable()
    for req in reqs[waiting:]:
        start = clock()
        info = policy.pick(0.0)
        pick_s.append(clock() - start)
        head = state_of[info.id]
        admitted = memory.admit(head.tokens, "", head.info.prompt_tok + 64, reserve=True)
        assert admitted is not None
        kv, hit = admitted
        policy.admit(info, extend_tok=info.prompt_tok - hit, hit_tok=hit)
        del state_of[info.id]
        memory.unwatch(info.id)
        memory.grow(kv, hit, info.prompt_tok)
        memory.computed(kv, head.tokens, info.prompt_tok, share=True)
        policy.finish(info.id)
        memory.release(kv)
        state_of[req.info.id] = req
        policy.arrive(req.info, 0.0)
        pass_s.append(clock() - start)
    gc.enable()
    return 1e6 * median(pick_s), 1e6 * median(pass_s)


def _request(i: int, rng: random.Random) -> RequestState:
    client, document = rng.randrange(100), rng.randrange(1000)
    tokens = SyntheticTokens([(f"system{client}", 160), (f"doc{document}", 320), (f"own{i}", 40)])
    return RequestState(RequestInfo(f"r{i}", f"c{client}", i, len(tokens), 64), tokens, "", 0.0)


def growth(sizes: list[int], costs: list[float]) -> float:
    """Least-squares slope of log cost over log size: 0 is constant, 1 linear."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def decision_rows(clock: Callable[[], float], console: Console) -> Iterator[dict[str, Any]]:
    """A row per policy and number of waiting requests; the growth exponents are of the whole policy."""
    for name in (*AGNOSTIC, *LOCAL):
        sizes = [n for n in SIZES if name in AGNOSTIC or n <= 100_000]
        clients_of = {n: max(10, min(10_000, n // 10)) if name in AGNOSTIC else 100 for n in sizes}
        costs = []
        for waiting in sizes:
            if name in AGNOSTIC:
                costs.append(decision_cost(name, waiting, clients_of[waiting], clock))
            else:
                costs.append(pass_cost(name, waiting, clock))
            console.print(f"{name:12} {waiting:9,} waiting: {costs[-1][0]:8.1f} us, {costs[-1][1]:8.1f} us")
        exponents = [growth(sizes, [cost[i] for cost in costs]) for i in range(2)]
        whole = "request" if name in AGNOSTIC else "pass"
        for waiting, (decision_us, whole_us) in zip(sizes, costs):
            yield {
                "policy": name,
                "waiting": waiting,
                "clients": clients_of[waiting],
                "decision_us": round(decision_us, 2),
                "decision_growth": round(exponents[0], 3),
                f"{whole}_us": round(whole_us, 2),
                f"{whole}_growth": round(exponents[1], 3),
            }


def simulator_rows(
    clock: Callable[[], float],
    cpu: Callable[[], float],
    plain_requests: int = 1_000_000,
    prefix_requests: int = 100_000,
) -> Iterator[dict[str, Any]]:
    """Seconds to simulate about so many requests without prefixes, and with prefix trees.

    The workload is built beforehand.
    """
    even = [Source(client, rate, end_s=plain_requests / 1.8) for client, rate in (("a", 0.6), ("b", 1.2))]
    documents = tuple((f"doc{i}", 480) for i in range(40))
    questions = [
        Source(f"c{i}", 1.0, end_s=prefix_requests / 4, prompt=(16, 48), output=(8, 24), prefix=documents)
        for i in range(4)
    ]
    cached = SimulatedEngine(memory_tok=9600, page_tok=48, max_slots=32, admit_every=4096)
    cases = (
        ("no prefixes", "vtc", even, SimulatedEngine(admit_every=4096)),
        ("prefix trees", "dlpm", questions, cached),
    )
    for name, policy, sources, server in cases:
        requests = merged(sources, 0)
        worker = Worker(
            lambda match, policy=policy: fair.make(policy, match=match),
            server.memory(),
            server.limits(),
            server.cost,
        )
        gc.collect()
        gc.freeze()
        start, cpu_start = clock(), cpu()
        result = ServingSimulation([worker], requests).run()
        seconds, cpu_seconds = clock() - start, cpu() - cpu_start
        gc.unfreeze()
        yield {
            "policy": f"{policy}, {name}",
            "requests": len(requests),
            "plans": result.plans,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "cpu_us_per_request": round(1e6 * cpu_seconds / len(requests), 1),
        }


def run_suite(
    out: Path, *, only: Sequence[str] = (), clock: Callable[[], float], cpu: Callable[[], float]
) -> None:
    """Updates the experiments E19 and E19-simulator of the table, the second alone if `only` names it.

    Args:
      clock, cpu: seconds of the wall, and of CPU time of this process.

    Raises:
      ValueError: a name in `only` that is not one of the two.
    """
    if unknown := [name for name in only if name not in ("E19", SIMULATOR)]:
        raise ValueError(f"unknown experiment {', '.join(unknown)}; known: E19, {SIMULATOR}")
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    if not only or "E19" in only:
        rows = list(decision_rows(clock, console))
        sizes = {f"E19-{row['waiting']}": f"E19 with {row['waiting']} requests waiting" for row in rows}
        titles = {"E19": "cost of decisions in microseconds (medians), by requests waiting", **sizes}
        source = {id: table.provenance(title) for id, title in titles.items()}
        table.update(out, source, list(dict.fromkeys(_decision_table(rows))))
        _show(rows)
    if not only or SIMULATOR in only:
        speed = []
        for row in simulator_rows(clock, cpu):
            console.print(*row.values())
            speed += [TableRow(SIMULATOR, row["policy"], "", k, v) for k, v in row.items() if k != "policy"]
        table.update(out, {SIMULATOR: table.provenance("how long the simulator takes")}, speed)


def _decision_table(rows: Sequence[dict[str, Any]]) -> Iterator[TableRow]:
    for row in rows:
        for metric, value in row.items():
            if metric.endswith("_growth"):
                yield TableRow("E19", row["policy"], "", metric, value)
            elif metric not in ("policy", "waiting"):
                yield TableRow(f"E19-{row['waiting']}", row["policy"], "", metric, value)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    shown = Table(title="E19: a decision in microseconds")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(str(row.get(column, "")) for column in columns))
    Console(width=140).print(shown)
