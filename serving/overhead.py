"""What a scheduling decision costs: waiting requests from 10^2 to 10^6, and how the cost grows."""

import gc
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from serving import fair
from serving.fairness import write_csv
from serving.memory import PagedMemory
from serving.pages import Group
from serving.request import Ask
from serving.scheduler import Entry, Locality
from serving.sim.runs import Runs

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


def decisions(name: str, waiting: int, clients: int, clock: Callable[[], float], rounds: int = 400) -> float:
    """Microseconds of one decision in a steady state: pick, admit, two decode reports, finish, one new
    arrival."""
    rng = random.Random(0)
    policy = fair.make(name, **AGNOSTIC[name])
    asks = (
        Ask(f"r{i}", f"c{rng.randrange(clients)}", i, rng.randint(10, 500), 256, rng.randint(10, 256))
        for i in range(waiting + rounds)
    )
    for _ in range(waiting):
        policy.arrive(next(asks), 0.0)
    spent = []
    gc.collect()
    gc.disable()
    for ask in list(asks):
        began = clock()
        head = policy.pick(0.0)
        policy.admit(head, extend_tok=head.prompt_tok, hit_tok=0)
        policy.decoded({head.id: 8})
        policy.decoded({head.id: 8})
        policy.finish(head.id)
        policy.arrive(ask, 0.0)
        spent.append(clock() - began)
    gc.enable()
    return 1e6 * median(spent)


def passes(name: str, waiting: int, clock: Callable[[], float], rounds: int = 60) -> float:
    """Microseconds of one pass with a real prefix tree: a prompt enters the cache, matches are renewed,
    one starts."""
    rng = random.Random(0)
    page = 16
    memory = PagedMemory([Group(None, 400_000)], page_tok=page, max_slots=64, max_tok=4096, span_tok=4096)
    waits: dict[str, Entry] = {}
    policy = fair.make(name, match=Locality(memory, waits), **LOCAL[name])
    entries = [_entry(i, rng) for i in range(waiting + rounds)]
    for entry in entries[:waiting]:
        waits[entry.ask.id] = entry
        policy.arrive(entry.ask, 0.0)
    spent = []
    gc.collect()
    gc.disable()
    for entry in entries[waiting:]:
        began = clock()
        ask = policy.pick(0.0)
        head = waits[ask.id]
        got = memory.admit(head.tokens, "", head.ask.prompt_tok + 64, reserve=True)
        assert got is not None
        holding, hit = got
        policy.admit(ask, extend_tok=ask.prompt_tok - hit, hit_tok=hit)
        del waits[ask.id]
        memory.unwatch(ask.id)
        memory.grow(holding, hit, ask.prompt_tok)
        memory.computed(holding, head.tokens, ask.prompt_tok, share=True)
        policy.finish(ask.id)
        memory.release(holding)
        waits[entry.ask.id] = entry
        policy.arrive(entry.ask, 0.0)
        spent.append(clock() - began)
    gc.enable()
    return 1e6 * median(spent)


def _entry(i: int, rng: random.Random) -> Entry:
    client, document = rng.randrange(100), rng.randrange(1000)
    runs = Runs([(f"system{client}", 160), (f"doc{document}", 320), (f"own{i}", 40)])
    return Entry(Ask(f"r{i}", f"c{client}", i, len(runs), 64), runs, "", 0.0)


def growth(sizes: list[int], costs: list[float]) -> float:
    """Slope of log cost over log size, least squares: 0 is constant, 1 linear."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def measured(clock: Callable[[], float], console: Console) -> Iterator[dict[str, Any]]:
    for name in (*AGNOSTIC, *LOCAL):
        sizes = [n for n in SIZES if name in AGNOSTIC or n <= 100_000]
        costs = []
        for waiting in sizes:
            clients = max(10, min(10_000, waiting // 10))
            cost = (
                decisions(name, waiting, clients, clock) if name in AGNOSTIC else passes(name, waiting, clock)
            )
            costs.append(cost)
            console.print(f"{name:12} {waiting:9,} waiting: {cost:8.1f} us")
        exponent = growth(sizes, costs)
        for waiting, cost in zip(sizes, costs):
            yield {
                "policy": name,
                "waiting": waiting,
                "clients": 100 if name in LOCAL else max(10, min(10_000, waiting // 10)),
                "what": "pass with prefix tree" if name in LOCAL else "decision",
                "us": round(cost, 2),
                "growth_exponent": round(exponent, 3),
            }


def run_suite(out: Path, *, clock: Callable[[], float]) -> None:
    """Writes E19.csv and prints it."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    rows = list(measured(clock, console))
    write_csv(out / "E19.csv", rows, "E19: cost of decisions in microseconds (medians), by requests waiting")
    table = Table(title="E19: a decision in microseconds")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
