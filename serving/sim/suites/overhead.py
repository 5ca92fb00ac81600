"""What a scheduling decision costs: waiting requests from 10^2 to 10^6, and how the cost grows."""

import gc
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from pallas_kernels import results
from serving import fair
from serving.engine.plan import RequestState
from serving.engine.scheduler import CacheLocality
from serving.kvcache.groups import FullGroup
from serving.kvcache.manager import KVCacheManager
from serving.request import RequestInfo
from serving.sim.experiment import SimulatedEngine
from serving.sim.simulator import ServingSimulation
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.worker import Worker
from serving.sim.workload import Source, merged

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


def decisions(
    name: str, waiting: int, clients: int, clock: Callable[[], float], rounds: int = 400
) -> tuple[float, float]:
    """Microseconds of a decision (pick and admit), and of a request's whole life in the policy.

    In a steady state; the life is pick, admit, two decode reports, finish, and the arrival of the next.
    """
    rng = random.Random(0)
    policy = fair.make(name, **AGNOSTIC[name])
    infos = (
        RequestInfo(f"r{i}", f"c{rng.randrange(clients)}", i, rng.randint(10, 500), 256, rng.randint(10, 256))
        for i in range(waiting + rounds)
    )
    for _ in range(waiting):
        policy.arrive(next(infos), 0.0)
    decided, lived = [], []
    gc.collect()
    gc.disable()
    for info in list(infos):
        began = clock()
        head = policy.pick(0.0)
        policy.admit(head, extend_tok=head.prompt_tok, hit_tok=0)
        decided.append(clock() - began)
        policy.decoded({head.id: 8})
        policy.decoded({head.id: 8})
        policy.finish(head.id)
        policy.arrive(info, 0.0)
        lived.append(clock() - began)
    gc.enable()
    return 1e6 * median(decided), 1e6 * median(lived)


def passes(name: str, waiting: int, clock: Callable[[], float], rounds: int = 60) -> tuple[float, float]:
    """Microseconds of the pick in a pass, and of the whole pass, with a real prefix tree.

    In a pass a request starts, its prompt enters the cache, what that touches is matched again, one arrives.
    """
    rng = random.Random(0)
    page = 16
    memory = KVCacheManager([FullGroup(400_000)], page_tok=page, max_slots=64, max_tok=4096, span_tok=4096)
    waits: dict[str, RequestState] = {}
    policy = fair.make(name, match=CacheLocality(memory, waits), **LOCAL[name])
    reqs = [_entry(i, rng) for i in range(waiting + rounds)]
    for req in reqs[:waiting]:
        waits[req.info.id] = req
        policy.arrive(req.info, 0.0)
    picked, passed = [], []
    gc.collect()
    gc.disable()
    for req in reqs[waiting:]:
        began = clock()
        info = policy.pick(0.0)
        picked.append(clock() - began)
        head = waits[info.id]
        got = memory.admit(head.tokens, "", head.info.prompt_tok + 64, reserve=True)
        assert got is not None
        kv, hit = got
        policy.admit(info, extend_tok=info.prompt_tok - hit, hit_tok=hit)
        del waits[info.id]
        memory.unwatch(info.id)
        memory.grow(kv, hit, info.prompt_tok)
        memory.computed(kv, head.tokens, info.prompt_tok, share=True)
        policy.finish(info.id)
        memory.release(kv)
        waits[req.info.id] = req
        policy.arrive(req.info, 0.0)
        passed.append(clock() - began)
    gc.enable()
    return 1e6 * median(picked), 1e6 * median(passed)


def _entry(i: int, rng: random.Random) -> RequestState:
    client, document = rng.randrange(100), rng.randrange(1000)
    runs = SyntheticTokens([(f"system{client}", 160), (f"doc{document}", 320), (f"own{i}", 40)])
    return RequestState(RequestInfo(f"r{i}", f"c{client}", i, len(runs), 64), runs, "", 0.0)


def growth(sizes: list[int], costs: list[float]) -> float:
    """Slope of log cost over log size, least squares: 0 is constant, 1 linear."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def measured(clock: Callable[[], float], console: Console) -> Iterator[dict[str, Any]]:
    for name in (*AGNOSTIC, *LOCAL):
        sizes = [n for n in SIZES if name in AGNOSTIC or n <= 100_000]
        what = decisions if name in AGNOSTIC else passes
        clients_of = {n: max(10, min(10_000, n // 10)) if name in AGNOSTIC else 100 for n in sizes}
        costs = []
        for waiting in sizes:
            if what is decisions:
                costs.append(decisions(name, waiting, clients_of[waiting], clock))
            else:
                costs.append(passes(name, waiting, clock))
            console.print(f"{name:12} {waiting:9,} waiting: {costs[-1][0]:8.1f} us, {costs[-1][1]:8.1f} us")
        exponents = [growth(sizes, [cost[i] for cost in costs]) for i in range(2)]
        for waiting, (decision, whole) in zip(sizes, costs):
            yield {
                "policy": name,
                "waiting": waiting,
                "clients": clients_of[waiting],
                "decision_us": round(decision, 2),
                "decision_growth": round(exponents[0], 3),
                "whole": "request" if name in AGNOSTIC else "pass with prefix tree",
                "whole_us": round(whole, 2),
                "whole_growth": round(exponents[1], 3),
            }


def simulated(
    clock: Callable[[], float], cpu: Callable[[], float], plain: int = 1_000_000, shared: int = 100_000
) -> Iterator[dict[str, Any]]:
    """Seconds to simulate so many requests, workload made beforehand: without prefixes, and with prefix
    trees."""
    even = [Source("a", 0.6, end_s=plain / 1.8), Source("b", 1.2, end_s=plain / 1.8)]
    documents = tuple((f"doc{i}", 480) for i in range(40))
    asking = [
        Source(f"c{i}", 1.0, end_s=shared / 4, prompt=(16, 48), output=(8, 24), prefix=documents)
        for i in range(4)
    ]
    cases = {
        "no prefixes": ("vtc", even, SimulatedEngine(admit_every=4096)),
        "prefix trees": (
            "dlpm",
            asking,
            SimulatedEngine(memory_tok=9600, page_tok=48, max_slots=32, admit_every=4096),
        ),
    }
    for name, (policy, sources, server) in cases.items():
        jobs = merged(sources, 0)
        worker = Worker(
            lambda match, policy=policy: fair.make(policy, match=match),
            server.memory(),
            server.limits(),
            server.cost,
        )
        gc.collect()
        gc.freeze()
        began, worked = clock(), cpu()
        result = ServingSimulation([worker], jobs).run()
        seconds, worked = clock() - began, cpu() - worked
        gc.unfreeze()
        yield {
            "workload": name,
            "policy": policy,
            "requests": len(jobs),
            "plans": result.plans,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(worked, 2),
            "cpu_us_per_request": round(1e6 * worked / len(jobs), 1),
        }


def run_suite(
    out: Path, *, only: Sequence[str] = (), clock: Callable[[], float], cpu: Callable[[], float]
) -> None:
    """Writes E19.csv and prints it; E19_simulator.csv too, or alone if `only` says `simulator`.

    Args:
      clock, cpu: seconds of the wall, and of this process's work (what counts on a busy machine).
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    if "simulator" not in only:
        rows = list(measured(clock, console))
        about = "E19: cost of decisions in microseconds (medians), by requests waiting"
        results.write_csv(out / "E19.csv", rows, about=about)
        table = Table(title="E19: a decision in microseconds")
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console(width=140).print(table)
    speed = []
    for row in simulated(clock, cpu):
        console.print(*row.values())
        speed.append(row)
    results.write_csv(out / "E19_simulator.csv", speed, about="E19: how long the simulator takes")
