"""Fairness experiments: one workload on one simulated server, under several policies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving import fair
from serving.config import Limits
from serving.engine.plan import MemoryManager
from serving.engine.scheduler import CacheLocality
from serving.fair.metrics import Event, LatencyTarget, ServiceMeter, ServiceReport, percentile
from serving.fair.policy import Policy
from serving.kvcache.groups import FullGroup
from serving.kvcache.manager import KVCacheManager
from serving.request import ClientId
from serving.sim.cost import StepCost
from serving.sim.critical_path import by_critical_path
from serving.sim.memory import ADMISSIONS, Admission, TokenMemory
from serving.sim.simulator import Failure, ServingSimulation, SimulationResult
from serving.sim.timed_policy import TimedPolicy
from serving.sim.vtc_artifact import RequestRecords, accumulated_gap, mean, rate_curves, service_difference
from serving.sim.worker import Worker
from serving.sim.workload import SimulatedRequest, Source, merged

WARM_UP_S, COOL_DOWN_S = 30.0, 29.0  # left out of what is measured while requests arrive
ANY_STEPS = tuple(range(1, 4097))


@dataclass
class SimulatedEngine:
    """A simulated server or cluster. The defaults are the VTC artifact's A10G with a 7B model.

    Attributes:
      memory_tok: tokens of KV memory per worker.
      admission: see `serving.sim.memory`; a prefix cache supports `reserve` and `optimistic`.
      page_tok: page size of the prefix cache; 0: no cache, memory is counted in tokens.
      step_tok: maximal prompt tokens per step; only longer prompts are split into chunks.
      admit_every: decode steps between two admission attempts.
      damped: whether optimistic admission learns from preemptions (see `serving.engine.admission_window`).
      slab_tok: a request holds min(T, slab_tok) tokens once its prompt is computed; 0 = no eviction.
      workers, router, router_options: a cluster if there is more than one worker.
      failures: (worker, down at, up at), times in seconds; up at inf: for good; down at 0: it joins later.
      speeds: of the workers, relative to `cost`; none: all are 1.
      told_speeds: whether the router knows them.
    """

    memory_tok: int = 10_000
    admission: Admission = "reserve"
    page_tok: int = 0
    step_tok: int = 3072
    max_slots: int = 1000
    admit_every: int = 10
    damped: bool = True
    slab_tok: int = 0
    workers: int = 1
    router: str = "round_robin"
    router_options: dict[str, Any] = field(default_factory=dict)
    failures: tuple[tuple[int, float, float], ...] = ()
    speeds: tuple[float, ...] = ()
    told_speeds: bool = True
    cost: StepCost = field(default_factory=StepCost)

    def check(self) -> None:
        if self.admission not in ADMISSIONS:
            raise ValueError(f"unknown admission {self.admission!r}; known: {', '.join(ADMISSIONS)}")
        if self.page_tok and self.admission == "peak":
            raise ValueError(f"page_tok is {self.page_tok}, but a prefix cache cannot admit by peak")
        if self.slab_tok < 0:
            raise ValueError(f"server.slab_tok is {self.slab_tok}; it must be at least 0 (no eviction)")
        if self.page_tok and self.slab_tok:
            raise ValueError(
                f"page_tok is {self.page_tok} and slab_tok {self.slab_tok}; eviction is simulated by tokens"
            )
        for name in ("memory_tok", "step_tok", "max_slots", "admit_every", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"server.{name} is {getattr(self, name)}; it must be at least 1")
        if self.speeds and (len(self.speeds) != self.workers or min(self.speeds) <= 0):
            raise ValueError(f"server.speeds are {self.speeds} for {self.workers} workers; each above 0")

    def memory(self) -> MemoryManager:
        """A new, empty memory of one worker."""
        if not self.page_tok:
            return TokenMemory(
                self.memory_tok,
                admission=self.admission,
                max_slots=self.max_slots,
                slab_tok=self.slab_tok,
            )
        pages = self.memory_tok // self.page_tok + 1
        return KVCacheManager(
            [FullGroup(pages)],
            page_tok=self.page_tok,
            max_slots=self.max_slots,
            max_tok=self.memory_tok,
            span_tok=self.step_tok,
        )

    def limits(self) -> Limits:
        """The scheduler's limits."""
        reserve = self.admission == "reserve"
        return Limits(
            chunk_tok=self.step_tok,
            step_tok=self.step_tok,
            decode_steps=ANY_STEPS,
            admit_every=self.admit_every,
            mixed=False,
            admission="reserve" if reserve else "optimistic",
            # Peak admission never preempts, so there is nothing to learn.
            damped=self.damped and self.admission == "optimistic",
        )


@dataclass
class PolicyRun:
    """One run of an experiment: a policy with its options, optionally on a server of its own.

    Attributes:
      prompt_weights: weights of a computed and of a cached prompt token in measured service.
      server: replaces the server of the experiment.
      critical_path: calls of programs have priorities by the work behind them (see `critical_path`).
    """

    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    prompt_weights: tuple[float, float] = (1.0, 1.0)
    server: SimulatedEngine | None = None
    critical_path: bool = False

    @property
    def name(self) -> str:
        return self.label or self.policy


@dataclass
class FairnessExperiment:
    """A workload, a server and the policies to compare.

    Attributes:
      id, title: e.g. "E1", and what it shows, with the figure or table of the paper that it repeats.
      sources: random clients. requests: `requests(seed)` builds a structured workload instead.
      demand_s: how long requests arrive; differences are measured within this time.
      weights: of the clients, by which service is measured; policies get theirs by their options.
      groups: the name under which a client is measured, where not its own.
      target: latencies that requests should meet.
      paper: by run and metric, the figure of a paper or its logs. The metric "CLIENT NAME" is of one client.
      plots: panels of its picture (see `serving.sim.suites.pictures`).
    """

    id: str = ""
    title: str = ""
    sources: tuple[Source, ...] = ()
    requests: Callable[[int], list[SimulatedRequest]] | None = None
    server: SimulatedEngine = field(default_factory=SimulatedEngine)
    runs: tuple[PolicyRun, ...] = (PolicyRun("vtc"),)
    seed: int = 0
    demand_s: float = 600.0
    weights: dict[ClientId, float] = field(default_factory=dict)
    groups: dict[ClientId, ClientId] = field(default_factory=dict)
    target: LatencyTarget = field(default_factory=LatencyTarget)
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    plots: tuple[str, ...] = ("service", "gap")

    def check(self) -> None:
        if not self.sources and self.requests is None:
            raise ValueError(f"experiment {self.id!r} has neither sources nor requests")
        for run in self.runs:
            fair.options(run.policy)

    def workload(self, seed: int | None = None) -> list[SimulatedRequest]:
        """Its requests in order of arrival, for its own seed or another."""
        seed = self.seed if seed is None else seed
        return merged(self.sources, seed) if self.requests is None else self.requests(seed)


@dataclass
class PolicyOutcome:
    """The results of one run.

    Attributes:
      bound: proven bound on the gap of two backlogged clients (reserve admission, one worker), else None.
      nominal_bound: the same formula, also where the admission voids the proof.
      decision_us: mean time of a `pick`, nan if it was not measured.
    """

    run: PolicyRun
    result: SimulationResult
    report: ServiceReport
    records: RequestRecords
    bound: float | None
    nominal_bound: float | None
    refills: int
    decision_us: float
    demand_s: float
    weights: dict[ClientId, float]

    def row(self) -> dict[str, Any]:
        """Metrics of the run over all clients: those of the VTC artifact and more; seconds, tokens, weighted
        tokens."""
        table = self.report.table()
        clients = self.records.by_client()
        ttft = {c: [r.first_s - r.arrival_s for r in served] for c, served in clients.items()}
        # From the warm-up until just before arrivals end: fairness is not promised after that.
        gap = [g for _, g in self._accumulated_gap()]
        waits = [percentile(seconds, 99) for seconds in ttft.values() if seconds]
        return {
            "run": self.run.name,
            "finished": self.result.finished,
            "refused": len(self.result.refused),
            "cancelled": self.result.cancelled,
            "expired": self.result.expired,
            "end_s": self.result.end_s,
            "tok_per_s": table["tok_per_s"],
            "output_tok_per_s": table["output_tok_per_s"],
            "req_per_s": self.result.finished / (self.result.end_s or float("nan")),
            **service_difference(self.records, self.demand_s, self.weights),
            "accumulated_gap": max(gap, default=float("nan")),
            "backlogged_gap": self.report.gap,
            "bound": self.bound if self.bound is not None else float("nan"),
            **{name: table[name] for name in ("gap_left_out", "lag", "pause_s", "jain")},
            **{name: table[name] for name in ("attainment", "least_attainment", "goodput")},
            "hit_rate": self.report.hit_rate,
            "ttft_mean_s": mean([s for seconds in ttft.values() for s in seconds]),
            "ttft_p99_s": percentile([s for seconds in ttft.values() for s in seconds], 99),
            "worst_ttft_p99_s": max(waits, default=float("nan")),
            "tpot_mean_s": mean([s for seconds in self.report.tpot_s.values() for s in seconds]),
            "ttft_max_s": max((s for seconds in ttft.values() for s in seconds), default=float("nan")),
            "preempted": self.report.preempted,
            "refills": self.refills,
            "decision_us": self.decision_us,
            "busiest_share": max(self.result.busy_s) / (sum(self.result.busy_s) or 1.0),
        }

    def client_rows(self) -> list[dict[str, Any]]:
        """One row per client: its service while requests arrive, and its latencies.

        `finished_in_demand`: requests that finished before arrivals ended.
        """
        rows = []
        finished = self.records.by_client()
        for client in sorted(self.report.service):
            served = finished.get(client, [])
            ttft = [r.first_s - r.arrival_s for r in served]
            e2e = [r.end_s - r.arrival_s for r in served]
            window_s = self.demand_s - COOL_DOWN_S - WARM_UP_S
            within = [r.within(WARM_UP_S, self.demand_s - COOL_DOWN_S) for r in served]
            arrived, in_target = self.report.arrived.get(client, 0), self.report.in_target.get(client, 0)
            rows.append(
                {
                    "run": self.run.name,
                    "client": client,
                    "finished": len(served),
                    "finished_in_demand": sum(r.end_s <= self.demand_s for r in served),
                    "service": self.report.service.get(client, 0.0),
                    "service_per_s": sum(within) / window_s if window_s > 0 else float("nan"),
                    "lag": self.report.lag.get(client, 0.0),
                    "pause_s": self.report.pause_s.get(client, 0.0),
                    "attainment": in_target / arrived if arrived else float("nan"),
                    "ttft_mean_s": mean(ttft),
                    **{f"ttft_p{p}_s": percentile(ttft, p) for p in (50, 90, 99)},
                    "ttft_max_s": max(ttft, default=float("nan")),
                    **{f"e2e_p{p}_s": percentile(e2e, p) for p in (50, 90, 99)},
                }
            )
        return rows

    def curves(self) -> dict[str, Any]:
        """Curves over time: service rates by client, and the gap accumulated since the warm-up."""
        return {
            "service": rate_curves(self.records, self.demand_s),
            "gap": self._accumulated_gap(),
        }

    def _accumulated_gap(self) -> list[tuple[float, float]]:
        end_s = self.demand_s - COOL_DOWN_S
        return accumulated_gap(self.records, WARM_UP_S, end_s, weights=self.weights)


def run(
    experiment: FairnessExperiment,
    policy_run: PolicyRun,
    *,
    requests: Sequence[SimulatedRequest] | None = None,
    log: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    progress: Callable[[float], None] = lambda now_s: None,
) -> PolicyOutcome:
    """Simulates one run to the end.

    Args:
      requests: the workload, if it was built before.
      log: is called with every event, in the engine's format.
      clock: measures decisions.
      progress: is called with the virtual time.

    Raises:
      ValueError: a request that does not fit even alone, no requests, or unknown options of the policy.
    """
    server = policy_run.server or experiment.server
    server.check()
    requests = experiment.workload() if requests is None else list(requests)
    if policy_run.critical_path:
        requests = by_critical_path(requests)
    if not requests:
        raise ValueError(f"experiment {experiment.id!r} has no requests")
    _check_fits(requests, server)
    computed, cached = policy_run.prompt_weights
    meter = ServiceMeter(
        prompt=computed,
        cached=cached,
        curves=False,
        weights=experiment.weights,
        target=experiment.target,
        group_of=experiment.groups,
    )
    records = RequestRecords(
        {request.id: request for request in requests},
        lambda r, hit_tok: computed * (r.prompt_tok - hit_tok) + cached * hit_tok + 2.0 * r.output_tok,
        group_of=experiment.groups,
    )

    def log_event(event: Event) -> None:
        meter.take(event)
        records.take(event)
        if log:
            log(event)

    policies: list[Policy] = []
    timed: list[TimedPolicy] = []

    def make_policy(match: CacheLocality) -> Policy:
        policy: Policy = fair.make(policy_run.policy, match=match, **policy_run.options)
        policies.append(policy)
        if clock is None:
            return policy
        timed.append(TimedPolicy(policy, clock))
        return timed[-1]

    speeds = server.speeds or (1.0,) * server.workers
    workers = [
        Worker(make_policy, server.memory(), server.limits(), server.cost.at_speed(speed), log_event)
        for speed in speeds
    ]
    router = fair.make(server.router, **server.router_options) if server.workers > 1 else None
    failures = [Failure(*failure) for failure in server.failures]
    told = speeds if server.told_speeds else ()
    result = ServingSimulation(workers, requests, router, failures, told).run(progress)
    bound = _nominal_bound(policies[0], requests, server)
    decisions = sum(policy.decisions for policy in timed)
    return PolicyOutcome(
        run=policy_run,
        result=result,
        report=meter.report(),
        records=records,
        bound=bound if server.admission == "reserve" else None,
        nominal_bound=bound,
        refills=sum(getattr(policy, "refills", 0) for policy in policies),
        decision_us=1e6 * sum(policy.seconds for policy in timed) / decisions if decisions else float("nan"),
        demand_s=experiment.demand_s,
        weights=experiment.weights,
    )


def _nominal_bound(
    policy: Policy, requests: Sequence[SimulatedRequest], server: SimulatedEngine
) -> float | None:
    if server.workers > 1:
        return None  # the proof is about one worker
    max_prompt_tok = max(request.prompt_tok for request in requests)
    return policy.gap_bound(
        memory_tok=server.memory_tok + (server.page_tok or 0),
        max_prompt_tok=max_prompt_tok,
        max_hit_tok=max_prompt_tok if server.page_tok else 0,
    )


def _check_fits(requests: Sequence[SimulatedRequest], server: SimulatedEngine) -> None:
    memory = server.memory()
    for request in requests:
        if why := memory.never_fits(request.prompt_tok + request.max_output_tok):
            raise ValueError(f"request {request.id!r} of {request.client!r} {why}")
