"""Programs share as clients do, weights change while running, and both pass through the engine's seam."""

import dataclasses
import json

import pytest

from serving import fair
from serving.config import Limits
from serving.engine.policy_fallback import FallbackPolicy
from serving.fair import metrics
from serving.request import Request, Sampling
from serving.sim import seeds
from serving.sim.cost import StepCost
from serving.sim.experiment import SimulatedEngine
from serving.sim.memory import TokenMemory
from serving.sim.simulator import ServingSimulation
from serving.sim.suites import fairness
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.timed_policy import TimedPolicy
from serving.sim.trace_experiment import policy_runs, trace_experiment
from serving.sim.traces import TraceOptions, read_trace
from serving.sim.worker import Worker
from serving.sim.workload import SimulatedRequest


def request(i, client, program="", output=10, at_s=0.0):
    return SimulatedRequest(
        f"r{i}", client, at_s, SyntheticTokens([(i, 10)]), 10, output, output, program=program
    )


def serve(requests, wrap, during=None, memory_tok=100, **options):
    log = []
    limits = Limits(chunk_tok=1000, step_tok=1000, decode_steps=(1, 2, 4), mixed=False)
    policy = wrap(fair.make(options.pop("policy", "vtc"), **options))

    def record(event):
        log.append(event)
        if during:
            during(worker.scheduler, event)

    worker = Worker(policy, TokenMemory(memory_tok), limits, StepCost(), record)
    ServingSimulation([worker], requests).run()
    return log


WRAPS = {
    "bare": lambda policy: policy,
    "engine": FallbackPolicy,
    "timed": lambda policy: TimedPolicy(policy, lambda: 0.0),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_twelve_agents_of_one_program_get_the_share_of_one_client(wrap):
    requests = [request(i, f"agent{i % 12}", "town") for i in range(120)]
    requests += [request(i, "user") for i in range(120, 240)]
    group = {f"agent{i}": "town" for i in range(12)}
    shares = {}
    for unit in ("client", "program"):
        log = serve(requests, wrap, unit=unit)
        half = metrics.report(log[: len(log) // 2], group_of=group).service
        shares[unit] = half["town"] / (half["town"] + half["user"])
    assert shares["client"] > 0.85
    assert shares["program"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_weight_changes_in_a_running_scheduler_and_the_log_says_so(wrap):
    requests = [request(i, "ab"[i % 2]) for i in range(400)]
    finished = []

    def during(scheduler, event):
        finished.append(event["event"] == "finish")
        if sum(finished) == 100 and finished[-1]:
            scheduler.set_weight("a", 4, event["t"])

    log = serve(requests, wrap, during)
    at = next(i for i, event in enumerate(log) if event["event"] == "weight")
    before, after = metrics.report(log[:at]).service, metrics.report(log[: at + (len(log) - at) // 3]).service
    assert before["a"] == pytest.approx(before["b"], rel=0.1)
    assert (after["a"] - before["a"]) / (after["b"] - before["b"]) == pytest.approx(4, rel=0.15)
    found = metrics.report(log)
    assert found.weights == {"a": 4.0}
    assert found.gap <= fair.make("vtc").gap_bound(memory_tok=100, max_prompt_tok=10)


def test_a_policy_that_cannot_share_by_weight_says_so_through_the_engines_seam():
    policy = FallbackPolicy(fair.make("fcfs"))
    with pytest.raises(ValueError, match="Fcfs cannot share by weight"):
        policy.set_weight("a", 2)
    assert policy.failure is None


def test_the_engine_asks_for_victims_through_its_wrapper():
    requests = [request(i, "a", output=80) for i in range(4)] + [request(9, "b", output=20, at_s=0.5)]
    for wrap in (WRAPS["bare"], WRAPS["engine"]):
        log = serve(requests, wrap, policy="vtc_preempt", threshold_tok=15, memory_tok=190)
        assert any(event["event"] == "preempt" for event in log)
        assert sum(event["event"] == "finish" for event in log) == 5
    assert FallbackPolicy(fair.make("vtc")).victim(0.0) is None


def test_a_trace_shared_by_program_is_measured_by_program(tmp_path):
    rows = [
        {
            "id": f"r{i}",
            "client": f"agent{i}",
            "arrival_s": 0,
            "prompt_len": 9,
            "output_len": 4,
            "program": "town",
        }
        for i in range(3)
    ]
    rows.append({"id": "u", "client": "user", "arrival_s": 0, "prompt_len": 9, "output_len": 4})
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = read_trace(path)
    for unit, clients in (("client", ["agent0", "agent1", "agent2", "user"]), ("program", ["town", "user"])):
        runs, _ = policy_runs([f"vtc:unit={unit}"], {}, {})
        more = (TraceOptions(), SimulatedEngine(), runs, metrics.LatencyTarget(), trace)
        experiment = trace_experiment(path, "own", *more)
        ((_, outcome),) = seeds.outcomes(experiment, [0])
        assert [row["client"] for row in outcome.client_rows()] == clients


def test_a_program_is_text():
    sampling = Sampling(max_tokens=1)
    assert Request(client="a", prompt_ids=[1], sampling=sampling, program="town").program == "town"
    with pytest.raises(ValueError, match="program is 3; it must be text"):
        Request(client="a", prompt_ids=[1], sampling=sampling, program=3)


def test_a_town_of_agents_beside_users_is_one_of_five_when_shared_by_program():
    (experiment,) = fairness.experiments(["E23"])
    short = dataclasses.replace(
        experiment,
        requests=lambda seed: experiment.workload(seed)[:400] + experiment.workload(seed)[-150:],
        server=SimulatedEngine(memory_tok=2500),
    )
    rows = {
        outcome.run.name: outcome.row()
        for _, outcome in seeds.outcomes(short, [0], runs=experiment.runs[1:3])
    }
    by_client, by_program = rows["vtc by client"], rows["vtc by program"]
    assert by_program["lag"] < 0.75 * by_client["lag"]
    assert by_program["finished"] == by_client["finished"]
