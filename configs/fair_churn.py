"""Experiments E21 to E25: what the papers do not see. Churn, shared prefixes, programs, other baselines,
damping.

  python -m serving.simulate --config=configs/fair_churn.py:E21 --seeds=5   # newcomers beside a veteran
  python -m serving.simulate --config=configs/fair_churn.py:E22   # 400 clients share a system prompt
  python -m serving.simulate --config=configs/fair_churn.py:E23   # a town of agents beside four users
  python -m serving.simulate --config=configs/fair_churn.py:E24   # policies of other groups, re-told
  python -m serving.simulate --config=configs/fair_churn.py:E25   # optimistic admission, damped or not

Seconds each. Expected: literal VTC serves a seventh of the veteran's 60 requests while newcomers come, the
fluid lift three quarters, at the same gap; D2LPM with its guards has round robin's latency where it had a
hundred times it; by program, the town's 25 agents get one share and the users' latencies are those of an idle
server.
"""

import random
from functools import cache

from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace
from serving.metropolis.worlds.trace import AgentTrace
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.workload import SimulatedRequest, Source, merged

CHURN_SERVER = SimulatedEngine(memory_tok=2560, admit_every=10)
CAPACITY = 3.75  # requests of 256 + 64 tokens per second that it serves


def request(id: str, client: str, at_s: float, prompt: int, output: int, **more: object) -> SimulatedRequest:
    tokens = SyntheticTokens([(id, prompt)])
    return SimulatedRequest(id, client, at_s, tokens, prompt, output, output, **more)  # type: ignore[arg-type]


def churn(seed: int, load: float = 1.06, seconds: float = 300.0) -> list[SimulatedRequest]:
    """A veteran's 60 requests at once, then newcomers of one request each at `load` times the capacity."""
    rng = random.Random(f"{seed}/churn")
    made, at_s, i = [request(f"v{i}", "veteran", 0.0, 256, 64) for i in range(60)], 0.0, 0
    while (at_s := at_s + rng.expovariate(load * CAPACITY)) < seconds:
        made.append(request(f"n{i}", f"n{i:04}", at_s, 256, 64))
        i += 1
    return made


def e21() -> FairnessExperiment:
    return FairnessExperiment(
        title="Churn: a veteran with 60 requests, newcomers with one each at 1.06 times capacity",
        requests=churn,
        server=CHURN_SERVER,
        runs=(
            PolicyRun("fcfs"),
            PolicyRun("rr"),
            PolicyRun("vtc"),
            PolicyRun("vtc", {"lift": "fluid"}, label="vtc, fluid lift"),
            PolicyRun("drr", {"quantum_tok": 128}),
            PolicyRun("dlpm", {"quantum_tok": 500, "newcomers": "quantum"}, label="dlpm, newcomers credited"),
            PolicyRun("dlpm", {"quantum_tok": 500}),
            PolicyRun("las"),
        ),
        demand_s=300.0,
        plots=("measures",),
    )


def shared_prompt(seed: int) -> list[SimulatedRequest]:
    """400 clients behind one system prompt of 64 tokens, at random."""
    rng, at_s, made = random.Random(f"{seed}/shared"), 0.0, []
    for i in range(2400):
        at_s += rng.expovariate(24.0)
        own = rng.randint(64, 192)
        tokens = SyntheticTokens([("system", 64), (i, own)])
        client, output = f"c{rng.randrange(400):03}", rng.randint(16, 48)
        made.append(SimulatedRequest(f"r{i}", client, at_s, tokens, 64 + own, output, 64))
    return made


def cluster(router: str, **options: object) -> SimulatedEngine:
    return SimulatedEngine(page_tok=16, admit_every=1, workers=4, router=router, router_options=dict(options))


def e22() -> FairnessExperiment:
    routers = {
        "round robin": cluster("round_robin"),
        "least load": cluster("least_load"),
        "d2lpm without guards": cluster("d2lpm", max_lead=None, min_share=0.0),
        "d2lpm, minimum share": cluster("d2lpm", max_lead=None),
        "d2lpm, load guard": cluster("d2lpm", min_share=0.0),
        "d2lpm": cluster("d2lpm"),
    }
    return FairnessExperiment(
        title="Four workers, 400 clients that share a system prompt of 64 tokens",
        requests=shared_prompt,
        server=routers["d2lpm"],
        runs=tuple(PolicyRun("dlpm", label=name, server=server) for name, server in routers.items()),
        demand_s=100.0,
        plots=("measures",),
    )


AGENTS = 25


@cache
def town_hour(seed: int) -> AgentTrace:
    return generate_trace(SyntheticTraceConfig(agents=AGENTS, hour=12, seed=seed))


def town(seed: int, steps: int = 90) -> list[SimulatedRequest]:
    """The calls of a synthetic town at noon, each after those it depends on: oracle order, as in Metropolis.

    An agent's chain of calls follows its last chain, and the last chains of all agents within sight.
    """
    trace = town_hour(seed)
    made: list[SimulatedRequest] = []
    last: dict[int, str] = {}  # the last call of each agent
    for step in range(steps):
        begun = dict(last)
        for agent, name in enumerate(trace.names):
            chain = trace.calls[agent].get(step, ())
            near = [other for other in range(len(trace.names)) if _sees(trace, agent, other, step)]
            before = tuple(dict.fromkeys(begun[other] for other in near if other in begun))
            for seq, call in enumerate(chain):
                id = f"{name}.{step}.{seq}"
                more = {"after": before or None, "program": "town"}
                made.append(request(id, name, 0.0, call.prompt_tok, max(1, call.output_tok), **more))
                before, last[agent] = (id,), id
    return made


def _sees(trace: AgentTrace, agent: int, other: int, step: int) -> bool:
    apart = (trace.x[agent][step] - trace.x[other][step], trace.y[agent][step] - trace.y[other][step])
    return max(map(abs, apart)) <= trace.reach.perceive


def users(seed: int) -> list[SimulatedRequest]:
    return merged(
        [
            Source(f"user{i}", 0.25, arrivals="poisson", prompt=(100, 400), output=(50, 200), end_s=240)
            for i in range(4)
        ],
        seed,
    )


def e23() -> FairnessExperiment:
    return FairnessExperiment(
        title="A town of 25 agents, which is one program, beside four users",
        requests=lambda seed: [*town(seed), *users(seed)],
        server=SimulatedEngine(memory_tok=10_000, admit_every=4),
        runs=(
            PolicyRun("fcfs"),
            PolicyRun("vtc", label="vtc by client"),
            PolicyRun("vtc", {"unit": "program", "lift": "fluid"}, label="vtc by program"),
            PolicyRun(
                "vtc",
                {"unit": "program", "lift": "fluid"},
                label="vtc by program, critical path",
                critical_path=True,
            ),
        ),
        groups=dict.fromkeys(town_hour(0).names, "town"),
        demand_s=240.0,
        plots=("latency",),
    )


def e24() -> FairnessExperiment:
    sources = (
        Source("steady", 1.0, arrivals="poisson", prompt=256, output=128, end_s=300),
        Source("flood", 6.0, arrivals="poisson", prompt=256, output=128, end_s=300),
        Source("long", 0.5, arrivals="poisson", prompt=1500, output=300, end_s=300),
        Source("bursty", 3.0, arrivals="poisson", prompt=64, output=64, on_s=30, off_s=60, end_s=300),
    )
    return FairnessExperiment(
        title="Policies of other groups, re-told: what each shares",
        sources=sources,
        server=SimulatedEngine(memory_tok=10_000, admit_every=4),
        runs=(
            PolicyRun("fcfs"),
            PolicyRun("vtc"),
            PolicyRun("vtc", {"lift": "fluid"}, label="vtc, fluid lift"),
            PolicyRun("vtc_preempt", {"threshold_tok": 2000}, label="vtc, preemptive"),
            PolicyRun("vtc_predict", {"predictor": "mean"}, label="vtc mean of 5"),
            PolicyRun("las"),
            PolicyRun("fairserve"),
            PolicyRun("equinox"),
        ),
        demand_s=300.0,
        plots=("measures",),
    )


def long_outputs(seed: int) -> list[SimulatedRequest]:
    rng = random.Random(f"{seed}/long")
    return [request(f"r{i}", f"c{i % 4}", 0.0, 50, rng.randint(800, 1500)) for i in range(480)]


def e25() -> FairnessExperiment:
    servers = {
        "reserve": SimulatedEngine(memory_tok=8000),
        "peak": SimulatedEngine(memory_tok=8000, admission="peak"),
        "optimistic, not damped": SimulatedEngine(memory_tok=8000, admission="optimistic", damped=False),
        "optimistic": SimulatedEngine(memory_tok=8000, admission="optimistic"),
    }
    return FairnessExperiment(
        title="Outputs of 800 to 1,500 tokens in a memory of 8,000: admission",
        requests=long_outputs,
        server=servers["optimistic"],
        runs=tuple(PolicyRun("vtc", label=name, server=server) for name, server in servers.items()),
        demand_s=600.0,
        plots=("measures",),
    )


EXPERIMENTS = {"E21": e21, "E22": e22, "E23": e23, "E24": e24, "E25": e25}
VARIANTS = tuple(EXPERIMENTS)


def get_config(variant: str = "E21") -> FairnessExperiment:
    if variant not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {variant!r}; known: {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[variant]()
    experiment.id = variant
    return experiment
