"""Random lives of a server, driven by the real scheduler in virtual time; every event is kept."""

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
class World:
    """One workload and one server.

    Attributes:
      shape: how requests come: all at once, spread, in bursts, on and off.
      lengths: `flat`, or `heavy` (few long among many short).
      prefixes: shared beginnings a client's requests have; 0 switches the prefix cache off.
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
class Life:
    """What a world came to."""

    world: World
    log: list[dict]
    worker: Worker
    meter: ServiceMeter
    policy: object
    max_prompt_tok: int

    @property
    def bound(self) -> float | None:
        return self.policy.gap_bound(memory_tok=self.world.memory_tok, max_prompt_tok=self.max_prompt_tok)

    def order(self) -> list[str]:
        return [event["id"] for event in self.log if event["event"] == "admit"]


def live(world: World, watch=None, jobs=None, keep=True, planned=None) -> Life:
    """Runs a world to its end.

    `watch(policy, event)` sees every event as it is logged; `keep` keeps them; `planned(scheduler, now_s)` is
    called after every plan, when no more is admitted.
    """
    jobs = world.jobs() if jobs is None else jobs
    limits = Limits(
        chunk_tok=10_000,
        step_tok=10_000,
        decode_steps=(1, 2, 3, 4, 8),
        admit_every=world.every,
        admission="reserve" if world.admission == "reserve" else "optimistic",
    )
    log: list[dict] = []
    cached = 0.0 if world.prefixes else 1.0
    meter = ServiceMeter(cached=cached, curves=False)

    def tell(event):
        if keep:
            log.append(event)
        meter.take(event)
        if watch:
            watch(worker.scheduler.policy, event)

    if world.prefixes:
        pages = -(-world.memory_tok // PAGE_TOK) + 1
        memory = KVCacheManager(
            [group(None, pages)], page_tok=PAGE_TOK, max_slots=64, max_tok=10_000, span_tok=10_000
        )
    else:
        memory = TokenMemory(world.memory_tok, admission=world.admission)
    policy = make(world)
    worker = Worker(policy, memory, limits, StepCost(), tell)
    if planned:
        plan = worker.scheduler.plan

        def plan_and_look(now_s):
            made = plan(now_s)
            planned(worker.scheduler, now_s)
            return made

        worker.scheduler.plan = plan_and_look
    ServingSimulation([worker], jobs).run()
    longest = max(job.prompt_tok for job in jobs)
    return Life(world, log, worker, meter, worker.scheduler.policy, longest)


def make(world: World):
    """The policy, or for those that look at the cache what makes it."""
    options = world.options | ({"cost": "extend"} if world.prefixes else {})
    return lambda match: fair.make(world.policy, match=match, **options)
