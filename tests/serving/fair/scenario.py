"""Random workloads on a simulated server with the real scheduler in virtual time."""

import random
from dataclasses import dataclass, field

from serving import fair
from serving.config import Limits
from serving.fair.metrics import ServiceMeter
from serving.kvcache.manager import KVCacheManager
from serving.sim.cost import StepCost
from serving.sim.memory import TokenMemory
from serving.sim.simulator import ServingSimulation
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.worker import Worker
from serving.sim.workload import SimulatedRequest
from tests.serving.kv_groups import group

PAGE_TOK = 4


@dataclass
class Scenario:
    """One workload and one server.

    Attributes:
      shape: arrival pattern: `burst` (all at once), `spread` (Poisson) or `waves`.
      lengths: `flat`, or `heavy` (heavy-tailed).
      prefixes: number of shared prefixes among a client's requests; 0 switches the prefix cache off.
      shared: whether the clients share these prefixes.
      slack: maximum excess of a request's output limit over its output.
    """

    seed: int = 0
    clients: int = 3
    requests: int = 60
    shape: str = "burst"
    lengths: str = "flat"
    longest: int = 20
    memory_tok: int = 80
    admission: str = "reserve"
    every: int = 1
    cancels: float = 0.0
    prefixes: int = 0
    shared: bool = False
    policy: str = "vtc"
    options: dict = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    slack: int = 0

    def jobs(self) -> list[SimulatedRequest]:
        rng = random.Random(self.seed)
        jobs, at_s = [], 0.0
        for i in range(self.requests):
            client = f"c{rng.choices(range(self.clients), self.rates or None)[0]}"
            at_s += self._gap(i, rng)
            prompt, output = self._length(rng), self._length(rng)
            runs = [(f"own{i}", prompt)]
            if self.prefixes:
                owner = "all" if self.shared else client
                runs.insert(0, (f"{owner}/{rng.randrange(self.prefixes)}", PAGE_TOK * rng.randint(2, 6)))
            total = sum(n for _, n in runs)
            gives_up = rng.uniform(0, 3.0) if rng.random() < self.cancels else None
            limit = output + rng.randint(0, self.slack)
            jobs.append(
                SimulatedRequest(
                    f"r{i}", client, at_s, SyntheticTokens(runs), total, output, limit, cancel_s=gives_up
                )
            )
        return jobs

    def _gap(self, i: int, rng: random.Random) -> float:
        match self.shape:
            case "burst":
                return 0.0
            case "spread":
                return rng.expovariate(4.0)
            case "waves":
                return 5.0 if i % 20 == 19 else 0.0
        raise ValueError(self.shape)

    def _length(self, rng: random.Random) -> int:
        if self.lengths == "flat":
            return self.longest // 2
        return min(self.longest, 1 + int(rng.paretovariate(0.8)))


@dataclass
class ScenarioRun:
    """The result of a scenario."""

    scenario: Scenario
    log: list[dict]
    worker: Worker
    meter: ServiceMeter
    policy: object
    max_prompt_tok: int

    @property
    def bound(self) -> float | None:
        return self.policy.gap_bound(memory_tok=self.scenario.memory_tok, max_prompt_tok=self.max_prompt_tok)

    def order(self) -> list[str]:
        return [event["id"] for event in self.log if event["event"] == "admit"]


def run_scenario(scenario: Scenario, watch=None, jobs=None, keep=True, planned=None) -> ScenarioRun:
    """Runs a scenario to its end.

    `watch(policy, event)` sees every event as it is logged; `keep` keeps them; `planned(scheduler, now_s)` is
    called after every plan, when no more is admitted.
    """
    jobs = scenario.jobs() if jobs is None else jobs
    limits = Limits(
        chunk_tok=10_000,
        step_tok=10_000,
        decode_steps=(1, 2, 3, 4, 8),
        admit_every=scenario.every,
        admission="reserve" if scenario.admission == "reserve" else "optimistic",
    )
    log: list[dict] = []
    cached = 0.0 if scenario.prefixes else 1.0
    meter = ServiceMeter(cached=cached, curves=False)

    def record(event):
        if keep:
            log.append(event)
        meter.take(event)
        if watch:
            watch(worker.scheduler.policy, event)

    if scenario.prefixes:
        pages = -(-scenario.memory_tok // PAGE_TOK) + 1
        memory = KVCacheManager(
            [group(None, pages)], page_tok=PAGE_TOK, max_slots=64, max_tok=10_000, span_tok=10_000
        )
    else:
        memory = TokenMemory(scenario.memory_tok, admission=scenario.admission)
    policy = make(scenario)
    worker = Worker(policy, memory, limits, StepCost(), record)
    if planned:
        plan = worker.scheduler.plan

        def plan_and_look(now_s):
            made = plan(now_s)
            planned(worker.scheduler, now_s)
            return made

        worker.scheduler.plan = plan_and_look
    ServingSimulation([worker], jobs).run()
    longest = max(job.prompt_tok for job in jobs)
    return ScenarioRun(scenario, log, worker, meter, worker.scheduler.policy, longest)


def make(scenario: Scenario):
    """The policy, or for those that look at the cache what makes it."""
    options = scenario.options | ({"cost": "extend"} if scenario.prefixes else {})
    return lambda match: fair.make(scenario.policy, match=match, **options)
