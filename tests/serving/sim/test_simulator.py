"""Virtual time: nothing is lost, nothing depends on how far a step jumps, and logs say what happened."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving import fair
from serving.config import Limits
from serving.fair import metrics
from serving.sim.cost import StepCost
from serving.sim.memory import TokenMemory
from serving.sim.simulator import Failure, ServingSimulation
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.worker import Worker
from serving.sim.workload import SimulatedRequest, Source, merged


def simulate(requests, policy="vtc", steps=(1, 2, 4, 8, 16), every=1, memory_tok=400, workers=1, **more):
    log = []
    limits = Limits(chunk_tok=1000, step_tok=1000, decode_steps=steps, admit_every=every, mixed=False)
    made = [
        Worker(fair.make(policy), TokenMemory(memory_tok), limits, StepCost(), log.append)
        for _ in range(workers)
    ]
    result = ServingSimulation(made, requests, **more).run()
    return log, result


def request(i, at_s=0.0, prompt=10, output=10, client="a", **more):
    return SimulatedRequest(
        f"r{i}", client, at_s, SyntheticTokens([(i, prompt)]), prompt, output, output, **more
    )


# A client that comes back in the middle of a jump is lifted to what the others have had by then, and no less.
IN_MID_JUMP = [(2.5, 8, 33), (1, 34, 19), (2.5, 17, 7), (1, 18, 54), (1, 58, 20), (2.5, 13, 57), (4, 8, 35)]
IN_MID_JUMP += [(2.278, 47, 5), (2, 2, 7), (2, 49, 55), (2, 15, 50), (5, 7, 52), (4, 9, 9), (0, 36, 46)]
IN_MID_JUMP += [(2, 58, 31), (1, 28, 58)]


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=25))
@example(IN_MID_JUMP)
@settings(max_examples=25)
def test_jumping_over_steps_changes_no_time(arrivals):
    requests = [
        request(i, at_s, prompt, output, "ab"[i % 2]) for i, (at_s, prompt, output) in enumerate(arrivals)
    ]
    slow, fast = simulate(requests, steps=(1,))[0], simulate(requests, steps=tuple(range(1, 100)))[0]

    def times(log):
        return {(e["event"], e["id"]): e["t"] for e in log if e["event"] in ("admit", "finish")}

    # Equal but for the order in which step times are added up.
    assert times(fast) == pytest.approx(times(slow), rel=1e-9)


def test_one_request_takes_what_the_cost_model_says():
    cost = StepCost()
    log, result = simulate([request(0, prompt=100, output=11)])
    # The prefill yields the first token; ten decode steps of one row follow, from 101 tokens of context on.
    want = 100 * cost.prefill_s + 10 * (cost.step_s + cost.row_s) + cost.context_s * sum(range(101, 111))
    assert result.end_s == pytest.approx(want)
    assert [e["event"] for e in log if e["event"] != "tokens"] == ["arrive", "admit", "first_token", "finish"]


def test_a_request_may_wait_for_another():
    log, _ = simulate([request(0), request(1, at_s=2.5, after="r0")])
    times = {(e["event"], e.get("id")): e["t"] for e in log}
    assert times["arrive", "r1"] == pytest.approx(times["finish", "r0"] + 2.5)


def test_a_failed_worker_loses_its_requests_to_the_others():
    requests = [request(i, at_s=0.1 * i, output=40) for i in range(20)]
    log, result = simulate(
        requests, workers=2, router=fair.make("round_robin"), failures=[Failure(0, 1.0, 3.0)]
    )
    assert result.moved > 0
    assert result.finished == 20
    assert sum(e["event"] == "finish" for e in log) == 20


def test_with_all_workers_down_requests_wait_for_the_first_to_come_back():
    _, result = simulate(
        [request(i, at_s=0.5 * i) for i in range(6)],
        router=fair.make("least_load"),
        failures=[Failure(0, 0.4, 9.0)],
    )
    assert result.finished == 6
    assert result.end_s > 9.0


def test_cancelled_requests_are_counted_and_free_their_memory():
    requests = [request(i, output=60, cancel_s=0.2 if i % 2 else None) for i in range(20)]
    log, result = simulate(requests, memory_tok=150)
    assert (result.finished, result.cancelled) == (10, 10)
    assert metrics.report(log).cancelled == 10


def test_the_same_seed_is_the_same_run():
    def once():
        sources = [
            Source("a", 2.0, end_s=30, arrivals="poisson"),
            Source("b", 4.0, end_s=30, output=("lognormal", 30, 1, 90)),
        ]
        return simulate(merged(sources, seed=3), memory_tok=1000)[0]

    assert once() == once()


def test_two_workers_need_a_router():
    with pytest.raises(ValueError, match="2 workers need a router"):
        simulate([request(0)], workers=2)


@pytest.mark.parametrize("source", [Source("a", rate=0), Source("a", end_s=0), Source("a", arrivals="never")])
def test_a_source_that_makes_no_sense_is_refused(source):
    with pytest.raises(ValueError, match="client 'a'"):
        merged([source], 0)


def test_on_and_off_and_ramps_send_what_they_say():
    on_off = merged([Source("a", 1.0, end_s=240, on_s=60, off_s=60)], 0)
    assert len(on_off) == 120
    assert all(r.arrival_s % 120 < 60 for r in on_off)
    ramp = merged([Source("a", 0.2, rate_end=2.0, end_s=600)], 0)
    assert len(ramp) == pytest.approx(600 * 1.1, rel=0.05)
