"""E17 on real workers: six clients, one of them hot with two prefixes, under four routers; beside what
the simulator says of the same requests with step costs fitted to one engine alone.

Three workers share the cores with the ingress and the load client, so only ratios between routers are told.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
SECONDS = 25.0
LOAD = 0.9  # of what three workers could do if every prefix were found
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
        rate = LOAD * len(cores) / _request_s(cost)
        yield row(
            "cluster_live",
            "rate of all clients",
            rate,
            "1/s",
            f"{LOAD:.0%} of what {len(cores)} cores can do",
        )
        live, simulated = {}, {}
        for router, policy in ROUTERS:
            name = f"{router} + {policy}"
            live[name] = _live(
                checkpoint, cores, Path(folder) / f"{router}-{policy}.jsonl", router, policy, rate
            )
            simulated[name] = _simulated(router, policy, rate, cost, len(cores) / WORKERS)
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


def _request_s(cost: StepCost) -> float:
    """Seconds of one worker for a request whose prefix it holds, with half of its slots in use."""
    rows = SLOTS // 2
    step_s = cost.step_s / rows + cost.row_s + cost.context_s * (PREFIX_TOK + QUESTION_TOK)
    return QUESTION_TOK * cost.prefill_s + OUTPUT_TOK * step_s


def _shares() -> list[tuple[str, float, int]]:
    """Clients: name, share of the requests, prefixes. Rates as in E17: 20 of the hot one, 5 of each other."""
    return [("hot", 20 / 45, 2), *((f"v{i}", 5 / 45, 6) for i in range(5))]


def _live(
    checkpoint: Path, cores: Sequence[int], log: Path, router: str, policy: str, rate: float
) -> RouterFigures:
    flags = (
        *(f"--workers={WORKERS}", f"--router={router}", f"--policy={policy}", f"--slots={SLOTS}"),
        *(f"--engine.num_pages={CACHE_TOK // 16 + 1}", "--heartbeat_s=20", "--max_live=8"),
        *(("--router_option=quantum_tok=4000",) if router == "d2lpm" else ()),
    )
    side = BenchServer(checkpoint, cores, log, *flags, module="serving.cluster")
    words = [
        f"--client={name} requests={round(rate * share * SECONDS)} rate={rate * share} groups={groups} "
        f"prefix_len={PREFIX_TOK} input_len={QUESTION_TOK} output_len={OUTPUT_TOK}"
        for name, share, groups in _shares()
    ]
    try:
        told = client(side.url, cores, *words, "--dataset_name=generated-shared-prefix", "--timeout_s=600")
    finally:
        side.stop()
    all_, clients = told["all"], told["clients"]
    victims = [_p99_s(clients[name]) for name, _, _ in _shares()[1:]]
    return RouterFigures(
        all_["request_throughput"],
        all_["cached_tokens"] / all_["total_input_tokens"],
        max(victims),
        _p99_s(clients["hot"]),
    )


def _p99_s(told: dict[str, Any]) -> float:
    value: float = told["latency_ms"]["ttft"]["p99"]
    return value / 1e3


def _simulated(router: str, policy: str, rate: float, cost: StepCost, speed: float) -> RouterFigures:
    sources = tuple(
        Source(
            name,
            rate * share,
            arrivals="poisson",
            prefix=tuple((f"{name}/{i}", PREFIX_TOK) for i in range(groups)),
            prompt=QUESTION_TOK,
            output=OUTPUT_TOK,
            end_s=SECONDS,
        )
        for name, share, groups in _shares()
    )
    engine = SimulatedEngine(
        memory_tok=CACHE_TOK,
        page_tok=16,
        step_tok=256,
        admit_every=1,
        max_slots=SLOTS,
        cost=cost.at_speed(speed),
        workers=WORKERS,
        router=SIMULATED.get(router, router),
        router_options={"quantum_tok": 4000} if router == "d2lpm" else {},
    )
    experiment = FairnessExperiment(id="live", sources=sources, server=engine, demand_s=SECONDS)
    outcome = run(experiment, PolicyRun(policy, prompt_weights=(1.0, 0.0)))
    waits = {r["client"]: r["ttft_p99_s"] for r in outcome.client_rows()}
    found = outcome.row()
    victims = max(waits[name] for name, _, _ in _shares()[1:])
    return RouterFigures(found["req_per_s"], found["hit_rate"], victims, waits["hot"])
