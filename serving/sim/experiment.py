"""An experiment: one workload on one kind of server, under several policies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving import fair
from serving.config import Limits
from serving.engine.plan import MemoryManager
from serving.engine.scheduler import CacheLocality
from serving.fair.metrics import Event, ServiceMeter, ServiceReport, jain, percentile
from serving.kvcache.groups import FullGroup
from serving.kvcache.manager import KVCacheManager
from serving.sim.cost import StepCost
from serving.sim.memory import ADMISSIONS, Admission, TokenMemory
from serving.sim.simulator import Failure, ServingSimulation, SimulationResult
from serving.sim.vtc_artifact import Records, accumulated_gap, mean, rate_curves, service_difference
from serving.sim.worker import Worker
from serving.sim.workload import SimulatedRequest, Source, merged

ANY_STEPS = tuple(range(1, 4097))


@dataclass
class SimulatedEngine:
    """What serves. The defaults are the VTC artifact's A10G with a 7B model.

    Attributes:
      memory_tok: tokens of KV, of each worker.
      admission: see `serving.sim.memory`; a prefix cache knows `reserve` and `optimistic`.
      page_tok: page size of a prefix cache; 0 for none, and then memory is counted in tokens.
      step_tok: prompt tokens in a step; prompts are not cut in chunks unless they are longer.
      admit_every: decode steps between two attempts to admit.
      workers, router, router_options: a cluster, if more than one.
      failures: (worker, down at, up at) in seconds.
    """

    memory_tok: int = 10_000
    admission: Admission = "reserve"
    page_tok: int = 0
    step_tok: int = 3072
    max_slots: int = 1000
    admit_every: int = 10
    workers: int = 1
    router: str = "round_robin"
    router_options: dict[str, Any] = field(default_factory=dict)
    failures: tuple[tuple[int, float, float], ...] = ()
    cost: StepCost = field(default_factory=StepCost)

    def check(self) -> None:
        if self.admission not in ADMISSIONS:
            raise ValueError(f"unknown admission {self.admission!r}; known: {', '.join(ADMISSIONS)}")
        if self.page_tok and self.admission == "peak":
            raise ValueError(f"page_tok is {self.page_tok}, but a prefix cache cannot admit by peak")
        for name in ("memory_tok", "step_tok", "max_slots", "admit_every", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"server.{name} is {getattr(self, name)}; it must be at least 1")

    def memory(self) -> MemoryManager:
        if not self.page_tok:
            return TokenMemory(self.memory_tok, admission=self.admission, max_slots=self.max_slots)
        pages = self.memory_tok // self.page_tok + 1
        return KVCacheManager(
            [FullGroup(pages)],
            page_tok=self.page_tok,
            max_slots=self.max_slots,
            max_tok=self.memory_tok,
            span_tok=self.step_tok,
        )

    def limits(self) -> Limits:
        reserve = self.admission == "reserve"
        return Limits(
            chunk_tok=self.step_tok,
            step_tok=self.step_tok,
            decode_steps=ANY_STEPS,
            admit_every=self.admit_every,
            mixed=False,
            admission="reserve" if reserve else "optimistic",
        )


@dataclass
class PolicyRun:
    """One line of an experiment: a policy with its options, perhaps on another server or router.

    Attributes:
      bill: weights of a computed and of a cached prompt token by which service is measured.
    """

    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    bill: tuple[float, float] = (1.0, 1.0)
    server: SimulatedEngine | None = None

    @property
    def name(self) -> str:
        return self.label or self.policy


@dataclass
class FairnessExperiment:
    """See the module.

    Attributes:
      id, title, about: e.g. "E1", what it is, and what of which paper it repeats.
      sources: random clients; `jobs(seed)` instead of them for workloads with a structure.
      demand_s: how long requests arrive; differences are measured within.
      paper: by run and metric, the figure of a paper or its logs, where there is one.
      plots: pictures to draw, of `service`, `gap`, `latency`.
    """

    id: str = ""
    title: str = ""
    about: str = ""
    sources: tuple[Source, ...] = ()
    jobs: Callable[[int], list[SimulatedRequest]] | None = None
    server: SimulatedEngine = field(default_factory=SimulatedEngine)
    runs: tuple[PolicyRun, ...] = (PolicyRun("vtc"),)
    seed: int = 0
    demand_s: float = 600.0
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    plots: tuple[str, ...] = ("service", "gap")

    def check(self) -> None:
        if not self.sources and self.jobs is None:
            raise ValueError(f"experiment {self.id!r} has neither sources nor jobs")
        for run in self.runs:
            fair.options(run.policy)

    def workload(self) -> list[SimulatedRequest]:
        return merged(self.sources, self.seed) if self.jobs is None else self.jobs(self.seed)


@dataclass
class PolicyOutcome:
    """What one run came to.

    Attributes:
      bound: on the gap of two clients that both wait, where it is proven (reserve admission, one worker).
      hoped: the same figure whatever the admission. decision_us: mean time of a pick.
    """

    run: PolicyRun
    result: SimulationResult
    report: ServiceReport
    records: Records
    bound: float | None
    hoped: float | None
    refills: int
    decision_us: float
    demand_s: float

    def row(self) -> dict[str, Any]:
        """The numbers of section 2.7 of the VTC artifact and more; seconds, tokens, weighted tokens."""
        table = self.report.table()
        clients = self.records.by_client()
        ttft = {c: [one.first_s - one.arrival_s for one in served] for c, served in clients.items()}
        # From the warm-up to just before arrivals end: after that nobody need be served alike.
        gap = [g for at_s, g in accumulated_gap(self.records, 30.0, self.demand_s - 29.0)]
        waits = [percentile(seconds, 50) for seconds in ttft.values() if seconds]
        return {
            "run": self.run.name,
            "finished": self.result.finished,
            "refused": len(self.result.refused),
            "cancelled": self.result.cancelled,
            "end_s": self.result.end_s,
            "tok_per_s": table["tok_per_s"],
            "output_tok_per_s": table["output_tok_per_s"],
            "req_per_s": self.result.finished / self.result.end_s,
            **service_difference(self.records, self.demand_s),
            "accumulated_gap": max(gap),
            "backlogged_gap": self.report.gap,
            "bound": self.bound if self.bound is not None else float("nan"),
            "jain_service": jain(self.report.service.values()),
            "jain_ttft": jain(waits),
            "hit_rate": self.report.hit_rate,
            "ttft_mean_s": mean([s for seconds in ttft.values() for s in seconds]),
            "ttft_p99_s": percentile([s for seconds in ttft.values() for s in seconds], 99),
            "ttft_max_s": max((s for seconds in ttft.values() for s in seconds), default=float("nan")),
            "preempted": self.report.preempted,
            "refills": self.refills,
            "decision_us": self.decision_us,
            "busiest_share": max(self.result.busy_s) / (sum(self.result.busy_s) or 1.0),
        }

    def client_rows(self) -> list[dict[str, Any]]:
        """One line a client: its service while requests arrive, and its waits."""
        rows = []
        for client, served in self.records.by_client().items():
            ttft = [one.first_s - one.arrival_s for one in served]
            e2e = [one.end_s - one.arrival_s for one in served]
            within = [one.within(30.0, self.demand_s - 29.0) for one in served]
            rows.append(
                {
                    "run": self.run.name,
                    "client": client,
                    "finished": len(served),
                    "service_per_s": sum(within) / (self.demand_s - 59.0),
                    "ttft_mean_s": mean(ttft),
                    **{f"ttft_p{p}_s": percentile(ttft, p) for p in (50, 90, 99)},
                    "ttft_max_s": max(ttft),
                    **{f"e2e_p{p}_s": percentile(e2e, p) for p in (50, 90, 99)},
                }
            )
        return rows

    def curves(self) -> dict[str, Any]:
        """What the pictures show: service rates by client, and the gap accumulated since the warm-up."""
        return {
            "service": rate_curves(self.records, self.demand_s),
            "gap": accumulated_gap(self.records, 30.0, self.demand_s - 29.0),
        }


class _Timed:
    """A policy's `pick`, timed by a clock from outside; the simulation itself knows none."""

    def __init__(self, pick: Callable[[float], Any], clock: Callable[[], float]):
        self.pick, self.clock, self.calls, self.seconds = pick, clock, 0, 0.0

    def __call__(self, now_s: float) -> Any:
        began = self.clock()
        info = self.pick(now_s)
        self.seconds += self.clock() - began
        self.calls += 1
        return info


def run(
    experiment: FairnessExperiment,
    which: PolicyRun,
    *,
    jobs: Sequence[SimulatedRequest] | None = None,
    log: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    progress: Callable[[float], None] = lambda now_s: None,
) -> PolicyOutcome:
    """Simulates one run to the end.

    Args:
      log: sees every event, as the engine would write it.
      clock: measures decisions; without one `decision_us` is nan.

    Raises:
      ValueError: a job that could not run even alone, or options that the policy does not know.
    """
    server = which.server or experiment.server
    server.check()
    jobs = experiment.workload() if jobs is None else list(jobs)
    _check_fits(jobs, server)
    computed, cached = which.bill
    meter = ServiceMeter(prompt=computed, cached=cached, curves=False)
    records = Records(
        {job.id: job for job in jobs},
        lambda job, hit: computed * (job.prompt_tok - hit) + cached * hit + 2.0 * job.output_tok,
    )

    def tell(event: Event) -> None:
        meter.take(event)
        records.take(event)
        if log:
            log(event)

    def policy(match: CacheLocality) -> Any:
        return fair.make(which.policy, match=match, **which.options)

    workers = [
        Worker(policy, server.memory(), server.limits(), server.cost, tell) for _ in range(server.workers)
    ]
    timers = []
    if clock:
        for worker in workers:
            timers.append(_Timed(worker.scheduler.policy.pick, clock))
            worker.scheduler.policy.pick = timers[-1]  # type: ignore[method-assign]
    router = fair.make(server.router, **server.router_options) if server.workers > 1 else None
    failures = [Failure(*failure) for failure in server.failures]
    result = ServingSimulation(workers, jobs, router, failures).run(progress)
    first = workers[0].scheduler.policy
    longest = max(job.prompt_tok for job in jobs)
    bound = first.gap_bound(
        memory_tok=server.memory_tok + (server.page_tok or 0),
        max_prompt_tok=longest,
        max_hit_tok=longest if server.page_tok else 0,
    )
    # What is proven of one worker says nothing of a cluster.
    bound = bound if server.workers == 1 else None
    proven = server.admission == "reserve"
    calls = sum(timer.calls for timer in timers)
    return PolicyOutcome(
        run=which,
        result=result,
        report=meter.report(),
        records=records,
        bound=bound if proven else None,
        hoped=bound,
        refills=sum(getattr(worker.scheduler.policy, "refills", 0) for worker in workers),
        decision_us=1e6 * sum(timer.seconds for timer in timers) / calls if calls else float("nan"),
        demand_s=experiment.demand_s,
    )


def _check_fits(jobs: Sequence[SimulatedRequest], server: SimulatedEngine) -> None:
    memory = server.memory()
    for job in jobs:
        if why := memory.never_fits(job.prompt_tok + job.max_output_tok):
            raise ValueError(f"request {job.id!r} of {job.client!r} {why}")
