"""The same events give the same decisions and tokens; a request's tokens are its own; nothing leaks."""

import dataclasses
import json

import pytest

from serving import fair
from serving.bench.soak import soak
from serving.config import Limits
from serving.engine.invariants import check_idle
from serving.fair import metrics
from serving.kvcache.manager import KVCacheManager
from serving.kvcache.tokens import TokenIds
from serving.request import Request, Sampling
from serving.sim.cost import StepCost
from serving.sim.simulator import ServingSimulation
from serving.sim.worker import Worker
from serving.sim.workload import SimulatedRequest
from tests.serving.tiny import engine, model, workload


class Clock:
    """Ticks once a look."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def run(requests, **more):
    events: list = []
    eng = engine(log=events.append, clock=Clock(), **more)
    return eng, events, eng.run(requests)


@pytest.mark.parametrize("policy", ["fcfs", "vtc", "dlpm"])
def test_L0_the_same_requests_give_the_same_log_and_outputs_bit_for_bit(policy):
    options = {"quantum_tok": 64} if policy == "dlpm" else {}
    requests = workload(seed=3, n=12, temperature=0.8)
    runs = [run(requests, policy=policy, policy_options=options) for _ in range(2)]
    logs = [json.dumps(events) for _, events, _ in runs]
    assert logs[0] == logs[1]
    assert runs[0][2] == runs[1][2]


def test_L1_a_requests_tokens_and_log_probabilities_do_not_depend_on_its_company():
    """One bucket, one decode shape: a row's arithmetic is the same whoever is beside it."""
    net = model("0_1s")
    mine = Request(
        client="me",
        id="me",
        prompt_ids=[3, 1, 4, 1, 5, 9, 2, 6],
        sampling=Sampling(max_tokens=16, logprobs=3, temperature=0.7, seed=2),
    )
    limits = Limits(chunk_tok=16, step_tok=64)
    alone = engine(net, rich=True, limits=limits, reuse=False).run([mine])[0]
    for seed in range(3):
        eng = engine(net, rich=True, limits=limits, reuse=False)
        for other in workload(seed=seed, n=5, temperature=0.9):
            eng.submit(other)
        [among] = eng.run([mine])
        assert among.output_ids == alone.output_ids
        assert among.logprobs == alone.logprobs, "bit for bit"


def replay(eng, requests, outputs) -> list[dict]:
    """The log of the simulator, given the engine's pages and limits, and how long each output was."""
    mem = eng.memory
    memory = KVCacheManager(
        mem.groups, page_tok=mem.page_tok, max_slots=4, max_tok=mem.max_tok, span_tok=mem.span_tok,
        step_tok=eng.config.limits.step_tok,
    )  # fmt: skip
    jobs = [
        SimulatedRequest(o.id, r.client, 0.0, TokenIds([*r.prompt_ids, *o.output_ids]),
            len(r.prompt_ids), len(o.output_ids), r.sampling.max_tokens, r.cache_salt)
        for r, o in zip(requests, outputs)
    ]  # fmt: skip
    events: list[dict] = []
    config = eng.config
    options = {"quantum_tok": 64} if config.policy == "dlpm" else {}
    worker = Worker(
        lambda match: fair.make(config.policy, match=match, **options),
        memory, config.limits, StepCost(), events.append,
    )  # fmt: skip
    ServingSimulation([worker], jobs).run()
    return events


@pytest.mark.parametrize("admission", ["reserve", "optimistic"])
@pytest.mark.parametrize("policy", ["fcfs", "vtc", "dlpm"])
def test_the_log_of_a_run_replays_in_the_simulator_to_the_same_decisions(policy, admission):
    """What the device adds is only which tokens, and when: every decision is the host's."""
    requests = [
        dataclasses.replace(r, id=f"r{i}") for i, r in enumerate(workload(seed=4, n=20, ignore_eos=True))
    ]
    options = {"quantum_tok": 64} if policy == "dlpm" else {}
    limits = Limits(chunk_tok=16, step_tok=32, admission=admission)
    eng, events, outputs = run(
        requests, net=model("0_1s"), num_pages=24, window_pages=28,
        policy=policy, policy_options=options, limits=limits,
    )  # fmt: skip
    assert [_decision(e) for e in replay(eng, requests, outputs)] == [_decision(e) for e in events]
    assert (eng.stats().preemptions > 0) == (admission == "optimistic")


@pytest.mark.parametrize(("policy", "cached"), [("vtc", 1.0), ("dlpm", 0.0)])
def test_the_engines_own_log_keeps_the_proven_bound(policy, cached):
    """One client floods, one comes late: while both wait, their service differs by no more than proven."""
    flood = workload(seed=5, n=24)
    requests = [dataclasses.replace(r, client="flood" if i % 4 else "modest") for i, r in enumerate(flood)]
    options = {"quantum_tok": 64} if policy == "dlpm" else {}
    eng, events, _ = run(
        requests, net=model("0_1s"), num_pages=24, window_pages=28, policy=policy, policy_options=options
    )
    report = metrics.report(events, cached=cached)
    longest = max(len(r.prompt_ids) for r in requests)
    bound = eng.scheduler.policy.gap_bound(memory_tok=23 * 4, max_prompt_tok=longest, max_hit_tok=longest)
    assert 0 < report.gap <= bound
    assert report.finished == len(requests)


def _decision(event):
    return {k: v for k, v in event.items() if k != "t"}


def check_soak(requests: int, seed: int) -> None:
    limits = Limits(chunk_tok=16, step_tok=32, admission="optimistic")
    eng = engine(model("0_1s"), num_pages=24, window_pages=28, limits=limits, policy="vtc")
    eng.run(workload(n=3))
    told = soak(eng, requests, seed)
    check_idle(eng)
    assert (told["ended"], told["twice"]) == (requests, [])
    assert told["reasons"]["cancel"] > 0
    assert told["compiled"] == [], "nothing is compiled behind the start"


def test_500_tiny_requests_with_random_cancels_end_idle_and_clean():
    check_soak(500, seed=0)


@pytest.mark.long
def test_10_000_tiny_requests_with_random_cancels_end_idle_and_clean():
    check_soak(10_000, seed=1)
