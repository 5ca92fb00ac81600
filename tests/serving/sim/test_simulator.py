"""Virtual time: nothing is lost, nothing depends on how far a step jumps, and logs say what happened."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving import fair
from serving.config import Limits
from serving.engine.admission_window import AdmissionWindow
from serving.fair import metrics
from serving.sim.cost import StepCost
from serving.sim.critical_path import by_critical_path, work_behind_tok
from serving.sim.experiment import FairnessExperiment, SimulatedEngine, run
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


def test_a_request_may_wait_for_several_others():
    log, _ = simulate([request(0), request(1, output=60), request(2, at_s=1.0, after=("r0", "r1"))])
    times = {(e["event"], e.get("id")): e["t"] for e in log}
    assert times["arrive", "r2"] == pytest.approx(times["finish", "r1"] + 1.0)


def test_a_deadline_ends_what_runs_and_what_waits():
    requests = [request(0, output=300, deadline_s=2.0), request(1, output=300, at_s=0.1, deadline_s=1.0)]
    log, result = simulate(requests, memory_tok=320)
    assert (result.finished, result.expired, result.cancelled) == (0, 2, 0)
    assert [e["t"] for e in log if e["event"] == "cancel"] == pytest.approx([1.1, 2.0])


def test_smaller_priorities_go_first():
    requests = [request(i, output=20, priority=-i) for i in range(6)]
    log, _ = simulate(requests, memory_tok=40)
    assert [e["id"] for e in log if e["event"] == "admit"] == [f"r{i}" for i in (5, 4, 3, 2, 1, 0)]


def test_the_critical_path_goes_first_and_shortens_the_program():
    """A chain of ten calls behind ten single ones: by arrival the chain begins last."""
    singles = [request(i, output=40, program="p") for i in range(10)]
    chain = [request(10, output=40, program="p")]
    chain += [request(i, output=40, program="p", after=f"r{i - 1}") for i in range(11, 20)]
    behind = work_behind_tok([*singles, *chain])
    assert behind["r10"] == pytest.approx(10 * 40.1)
    assert behind["r0"] == pytest.approx(40.1)
    plain = simulate([*singles, *chain], memory_tok=100)[1].end_s
    first = simulate(by_critical_path([*singles, *chain]), memory_tok=100)[1].end_s
    assert first < 0.8 * plain
    with pytest.raises(ValueError, match="2 requests follow each other in a circle"):
        work_behind_tok([request(0, after="r1"), request(1, after="r0")])


def optimistic(damped):
    requests = [request(i, prompt=50, output=80 + 7 * i % 70, client="abcd"[i % 4]) for i in range(120)]
    server = SimulatedEngine(memory_tok=800, admission="optimistic", damped=damped)
    experiment = FairnessExperiment(requests=lambda seed: requests, server=server)
    return run(experiment, experiment.runs[0]).row()


def test_damped_optimistic_admission_preempts_far_less_for_the_same_throughput():
    damped, thrashing = optimistic(True), optimistic(False)
    assert damped["preempted"] < thrashing["preempted"] / 4
    assert damped["output_tok_per_s"] > 0.85 * thrashing["output_tok_per_s"]
    assert damped["finished"] == thrashing["finished"] == 120


def test_the_admission_window_opens_slowly_and_closes_quickly():
    window = AdmissionWindow()
    assert window.admits(10**6)
    window.shrink(running=31)
    assert window.width == 30
    assert not window.admits(30)
    for _ in range(30):
        window.widen()
    assert window.width == pytest.approx(31, abs=0.1)
    for _ in range(200):
        window.shrink(running=1)
    assert window.admits(0)
    assert not window.admits(1)


def test_with_slabs_a_request_holds_its_prompt_and_then_min_of_its_length_and_the_slab():
    from serving.kvcache.tokens import TokenIds
    from serving.sim.memory import TokenMemory

    memory = TokenMemory(100, slab_tok=20)
    kv, _ = memory.admit(TokenIds(range(60)), "", 90, reserve=True)
    assert memory.admit(TokenIds(range(60)), "", 90, reserve=True) is None, "one prompt at a time"
    memory.computed(kv, TokenIds(range(60)), 60, share=True)
    assert (memory.held_tok, memory.final_tok) == (20, 20)
    assert memory.grow(kv, 60, 90)
    assert memory.held_tok == 20
    held = [kv, *(memory.admit(TokenIds(range(10)), "", 15, reserve=True)[0] for _ in range(5))]
    assert memory.admit(TokenIds(range(10)), "", 15, reserve=True) is None
    for one in held:
        memory.release(one)
    assert (memory.held_tok, memory.final_tok) == (0, 0)
