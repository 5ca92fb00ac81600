"""E17 on real workers: six clients, one of them hot with two prefixes, under four routers; beside what
the simulator says of the same requests with step costs fitted to one engine alone.

Three workers share the cores with the ingress and the load client, so only ratios between routers have goals.
A first run, of sticky routing with everything asked at once, says what the machine can do: it gives the rate
of the others, and what a token costs outside of engines, which the simulator is told. The rate is above
what the machine can do; the hot client asks for more than its share and the others for less, so fairness has
something to decide. The quanta were chosen in the simulator.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.bench import Row, Size, row
from serving.bench.http_sides import BenchServer, client, write_checkpoint
from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine, run
from serving.sim.fit import fit_step_cost
from serving.sim.workload import Source

WORKERS = 3
PREFIX_TOK, QUESTION_TOK, OUTPUT_TOK = 768, 32, 8
CACHE_TOK = 8192  # of a worker: 10 of the 32 prefixes
SLOTS = 8
STEP_TOK = 256
QUANTUM_TOK = 20_000  # a client's credit at each worker, between refills
LOCAL = {"quantum_tok": 2000}  # the same inside of a worker
SECONDS = 25.0
LOAD = 1.6  # of what the workers did in the first run
BURST = 1200  # requests of the first run
ROUTERS = (("rr", "vtc"), ("rr", "lpm"), ("sticky", "lpm"), ("d2lpm", "dlpm"))
SIMULATED = {"rr": "round_robin"}


@dataclass(frozen=True)
class RouterFigures:
    """What a router's run showed: requests/s, share of prompt tokens found, and p99 of the first token."""

    request_per_s: float
    hit_rate: float
    victims_p99_s: float
    hot_p99_s: float


def cluster_live(size: Size) -> Iterator[Row]:
    """Live figures by router, and the simulator's beside them."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model")
        cost = _fitted(checkpoint, cores[:1], Path(folder) / "fit.jsonl")
        burst = _burst(BURST)
        asked = _live(checkpoint, cores, Path(folder) / "burst.jsonl", "sticky", "lpm", burst)
        yield row("cluster_live", "requests/s, all at once", asked.request_per_s, "1/s", "sticky + lpm, live")
        cost, told_us = _outside(cost.at_speed(len(cores) / WORKERS), burst, asked.request_per_s)
        yield row("cluster_live", "of a token outside of engines", told_us, "us", "from that run")
        rate = LOAD * asked.request_per_s
        demand = _steady(rate)
        yield row("cluster_live", "rate of all clients", rate, "1/s", f"{LOAD} of that, {SECONDS:.0f} s")
        live, simulated = {}, {}
        for router, policy in ROUTERS:
            name = f"{router} + {policy}"
            log = Path(folder) / f"{router}-{policy}.jsonl"
            live[name] = _live(checkpoint, cores, log, router, policy, demand)
            simulated[name] = _simulated(router, policy, demand, cost)
            for kind, found in (("live", live[name]), ("simulated", simulated[name])):
                for figure, value in vars(found).items():
                    unit = "s" if figure.endswith("p99_s") else "1/s" if figure.endswith("per_s") else ""
                    yield row("cluster_live", f"{name}: {figure}", value, unit, kind)
        yield from _ratios(live, simulated)


def _ratios(live: dict[str, RouterFigures], simulated: dict[str, RouterFigures]) -> Iterator[Row]:
    def of(found: dict[str, RouterFigures]) -> dict[str, float]:
        d2lpm, sticky = found["d2lpm + dlpm"], found["sticky + lpm"]
        lpm, vtc = found["rr + lpm"], found["rr + vtc"]
        return {
            "hit rate of sticky less d2lpm's": sticky.hit_rate - d2lpm.hit_rate,
            "victims' p99 first token, d2lpm over sticky": d2lpm.victims_p99_s / sticky.victims_p99_s,
            "victims' p99 first token, d2lpm over rr + lpm": d2lpm.victims_p99_s / lpm.victims_p99_s,
            "requests/s, d2lpm over rr + vtc": d2lpm.request_per_s / vtc.request_per_s,
        }

    goals = ("<= 0.03", "<= 0.5", "<= 0.7", ">= 2.0")
    predicted = of(simulated)
    for goal, (figure, value) in zip(goals, of(live).items()):
        yield row("cluster_live", figure, value, "", f"simulated {predicted[figure]:.3g}", goal)


def _fitted(checkpoint: Path, cores: Sequence[int], log: Path) -> StepCost:
    """Step costs of one engine alone on one core, from its own log."""
    server = BenchServer(checkpoint, cores, log, f"--slots={SLOTS}", "--engine.limits.decode_steps=[1]")
    try:
        for seed in (1, 2):
            words = {"num_prompts": 48, "random_input_len": PREFIX_TOK // seed, "random_output_len": 24}
            client(server.url, cores, **words, seed=seed)
    finally:
        events = server.stop()
    return fit_step_cost(events).cost


def _outside(engine: StepCost, burst: list["ClientDemand"], live_per_s: float) -> tuple[StepCost, float]:
    """Costs with which the simulator serves the burst as quickly as it was, and microseconds added a token.

    Front door, HTTP and load client take the workers' cores for each token that is streamed.
    """
    low_s, high_s = 0.0, 1.0 / live_per_s
    for _ in range(12):
        middle_s = (low_s + high_s) / 2
        cost = replace(engine, row_s=engine.row_s + middle_s)
        slower = _simulated("sticky", "lpm", burst, cost).request_per_s < live_per_s
        low_s, high_s = (low_s, middle_s) if slower else (middle_s, high_s)
    return replace(engine, row_s=engine.row_s + low_s), 1e6 * low_s


@dataclass(frozen=True)
class ClientDemand:
    """What one client asks for: so many requests at this rate over its own prefixes."""

    name: str
    requests: int
    rate: float
    prefixes: int


def _demand(requests: int, rate: float) -> list[ClientDemand]:
    """Rates as in E17: 20 of the hot client, whose prefixes are two, to 5 of each other, with six."""
    hot = ClientDemand("hot", round(requests * 20 / 45), rate * 20 / 45, 2)
    share = 5 / 45
    return [hot, *(ClientDemand(f"v{i}", round(requests * share), rate * share, 6) for i in range(5))]


def _burst(requests: int) -> list[ClientDemand]:
    """Everything within a second."""
    return _demand(requests, float(requests))


def _steady(rate: float) -> list[ClientDemand]:
    return _demand(round(rate * SECONDS), rate)


def _live(
    checkpoint: Path, cores: Sequence[int], log: Path, router: str, policy: str, demand: list[ClientDemand]
) -> RouterFigures:
    flags = (
        *(f"--workers={WORKERS}", f"--router={router}", f"--policy={policy}", f"--slots={SLOTS}"),
        *(f"--engine.num_pages={CACHE_TOK // 16 + 1}", "--heartbeat_s=20"),
        "--max_live=4096",  # requests wait at the workers, as in the simulator
        *(f"--engine.limits.chunk_tok={STEP_TOK}", f"--engine.limits.step_tok={STEP_TOK}"),
        *((f"--router_option=quantum_tok={QUANTUM_TOK}",) if router == "d2lpm" else ()),
        *((f"--engine.policy_options={json.dumps(LOCAL)}",) if policy == "dlpm" else ()),
    )
    side = BenchServer(checkpoint, cores, log, *flags, module="serving.cluster")
    words = [
        f"--client={one.name} requests={one.requests} rate={one.rate} groups={one.prefixes} "
        f"prefix_len={PREFIX_TOK} input_len={QUESTION_TOK} output_len={OUTPUT_TOK}"
        for one in demand
    ]
    try:
        told = client(side.url, cores, *words, "--dataset_name=generated-shared-prefix", "--timeout_s=600")
    finally:
        side.stop()
    all_, clients = told["all"], told["clients"]
    return RouterFigures(
        all_["request_throughput"],
        all_["cached_tokens"] / all_["total_input_tokens"],
        max(_p99_s(clients[one.name]) for one in demand[1:]),
        _p99_s(clients["hot"]),
    )


def _p99_s(told: dict[str, Any]) -> float:
    value: float = told["latency_ms"]["ttft"]["p99"]
    return value / 1e3


def _simulated(router: str, policy: str, demand: list[ClientDemand], cost: StepCost) -> RouterFigures:
    sources = tuple(
        Source(
            one.name,
            one.rate,
            arrivals="poisson",
            prefix=tuple((f"{one.name}/{i}", PREFIX_TOK) for i in range(one.prefixes)),
            prompt=QUESTION_TOK,
            output=OUTPUT_TOK,
            end_s=one.requests / one.rate,
        )
        for one in demand
    )
    engine = SimulatedEngine(
        memory_tok=CACHE_TOK,
        page_tok=16,
        step_tok=STEP_TOK,
        admit_every=1,
        max_slots=SLOTS,
        cost=cost,
        workers=WORKERS,
        router=SIMULATED.get(router, router),
        router_options={"quantum_tok": QUANTUM_TOK} if router == "d2lpm" else {},
    )
    experiment = FairnessExperiment(id="live", sources=sources, server=engine, demand_s=SECONDS)
    options = LOCAL if policy == "dlpm" else {}
    outcome = run(experiment, PolicyRun(policy, options, prompt_weights=(1.0, 0.0)))
    waits = {r["client"]: r["ttft_p99_s"] for r in outcome.client_rows()}
    found = outcome.row()
    victims = max(waits[one.name] for one in demand[1:])
    return RouterFigures(found["req_per_s"], found["hit_rate"], victims, waits["hot"])
