"""Schedules: golden makespans, laws that every simulation obeys, and races found when a need is dropped."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.offload.hazards import races
from serving.offload.schedule import LANES, SCHEDULES, LaneTask, TaskSeconds, emit
from serving.offload.simulate import critical_path_s, layer_bound_s, simulate

RACE_FREE_BY_NEEDS = ("s1", "s2", "s3", "s4", "zero")  # the others add order for its own sake


def durations(B: float, W: float, C: float, K: float, P: float) -> TaskSeconds:
    """Named as in the paper: B host attention, W weights, C post-attention, K K/V, P pinned copy."""
    return TaskSeconds(
        *(1.0, C, 0.5, 0.5), host_attention=B, device_attention=0.5, weights=W, kv=K, pin=P, store=0.5
    )


def makespan(schedule: str, layers: int, m: int, seconds: TaskSeconds, **more) -> float:
    return simulate(emit(schedule, layers=layers, micro_batches=m, seconds=seconds, **more)).makespan_s


GOLDEN = [  # layers, m, (B, W, C, K, P), s1 to s4, bound per layer
    (3, 4, (2, 8, 2, 4, 4), (39.0, 50.0, 77.0, 68.0), 12),
    (6, 4, (2, 16, 2, 4, 8), (105, 142.5, 196.5, 180), 18),
    (6, 4, (2, 6, 3, 4, 6), (98, 105.5, 168, 137.5), 16),
    (6, 4, (5, 8, 2, 10, 8), (124, 136.5, 216, 284), 20),
    (6, 5, (3, 10, 2, 6, 10), (108, 143.5, 227.5, 234), 15),
    (6, 2, (3, 6, 2, 6, 6), (45.5, 51.5, 84, 106), 7),
    (6, 1, (3, 6, 2, 6, 6), (62.5, 42, 42, 70), 6.5),
]


@pytest.mark.parametrize(("layers", "m", "paper", "expected", "bound"), GOLDEN)
def test_golden_makespans(layers, m, paper, expected, bound):
    seconds = durations(*paper)
    assert tuple(makespan(f"s{i}", layers, m, seconds) for i in (1, 2, 3, 4)) == expected
    assert layer_bound_s("s1", m, seconds) == bound


def test_staging_costs_one_micro_batch_its_overlap():
    assert makespan("s1", 6, 1, durations(3, 6, 2, 6, 0)) == 42
    assert makespan("s1", 6, 1, durations(3, 6, 2, 6, 6)) == 62.5


@pytest.mark.parametrize(
    ("paper", "expected"), [((2, 16, 2, 4, 8), 144), ((2, 6, 3, 4, 6), 168), ((5, 8, 2, 10, 8), 216)]
)
def test_one_micro_batch_ahead_is_not_enough(paper, expected):
    assert makespan("s1", 6, 4, durations(*paper), ahead=1) == expected


def test_the_device_lane_of_cgopipe_is_the_paper_figure():
    tasks = emit("s1", layers=3, micro_batches=4, seconds=durations(2, 8, 2, 4, 4))
    spans = [s for s in simulate(tasks).spans if s.task.lane == "device"]
    found = [(s.task.kind, s.task.layer, s.task.part, s.start_s, s.end_s) for s in spans][:8]
    assert found == [
        ("pre", 0, 0, 0, 1), ("pre", 0, 1, 1, 2), ("post", 0, 0, 4, 6), ("pre", 0, 2, 6, 7),
        ("post", 0, 1, 7, 9), ("pre", 0, 3, 9, 10), ("post", 0, 2, 10, 12), ("pre", 1, 0, 12, 13),
    ]  # fmt: skip


def test_flexgen_is_the_sum_of_its_steps():
    t, layers, m = durations(2, 8, 2, 4, 0), 3, 4
    block = t.pre + t.device_attention + t.post
    steps = layers * m
    total = t.kv
    for q in range(steps):
        weights = t.weights if q % m == 0 and q // m + 1 < layers else 0
        kv = t.kv if q + 1 < steps else 0
        total += max(weights + kv, block, t.store if q else 0)
    assert makespan("flexgen", layers, m, t) == total + t.store


def test_serial_is_the_sum_of_everything():
    tasks = emit("serial", layers=3, micro_batches=2, seconds=durations(2, 8, 2, 4, 0))
    assert simulate(tasks).makespan_s == sum(task.seconds for task in tasks)


sizes = st.tuples(st.integers(1, 7), st.integers(1, 6))
a_second = st.floats(0.01, 10)
any_durations = st.builds(TaskSeconds, *[a_second] * 8, pin=st.sampled_from([0.0, 1.0, 7.0]), store=a_second)


@given(st.sampled_from(sorted(SCHEDULES)), sizes, any_durations, st.sampled_from(["", "first"]))
def test_lanes_never_overlap_themselves_and_needs_always_hold(schedule, size, seconds, variant):
    tasks = emit(schedule, layers=size[0], micro_batches=size[1], seconds=seconds, variant=variant)
    run = simulate(tasks)
    for lane in LANES:
        mine = [span for span in run.spans if span.task.lane == lane]
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(mine))
    for span in run.spans:
        assert all(run.spans[need].end_s <= span.start_s for need in span.task.needs)
    assert run.makespan_s >= max(run.busy_s().values()) - 1e-9
    assert run.makespan_s >= critical_path_s(tasks) - 1e-9
    assert run.makespan_s <= sum(task.seconds for task in tasks) + 1e-9
    assert min(run.bubble_s().values()) >= -1e-9


@given(st.sampled_from(sorted(SCHEDULES)), sizes, any_durations, st.sampled_from(["", "first"]))
def test_no_schedule_has_a_race(schedule, size, seconds, variant):
    tasks = emit(schedule, layers=size[0], micro_batches=size[1], seconds=seconds, variant=variant)
    assert races(tasks) == []


@pytest.mark.parametrize("schedule", RACE_FREE_BY_NEEDS)
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_dropping_any_one_need_is_a_race(schedule, m):
    tasks = emit(schedule, layers=5, micro_batches=m, seconds=durations(2, 8, 2, 4, 4))
    dropped = 0
    for index, task in enumerate(tasks):
        for need in task.needs:
            fewer = tuple(n for n in task.needs if n != need)
            assert races([*tasks[:index], task._replace(needs=fewer), *tasks[index + 1 :]]), (
                task,
                tasks[need],
            )
            dropped += 1
    assert dropped > len(tasks) / 4


def test_every_micro_batch_passes_every_layer_and_every_page_arrives_once():
    for schedule in RACE_FREE_BY_NEEDS:
        tasks = emit(schedule, layers=5, micro_batches=3, seconds=durations(2, 8, 2, 4, 4))
        assert len({task[:3] for task in tasks}) == len(tasks)
        weights = sum(task.seconds for task in tasks if task.kind == "weights")
        assert weights == pytest.approx(4 * 8)  # layer 0 is resident when the pass begins
        done = {task[1:3] for task in tasks if task.kind in ("post", "block")}
        assert len(done) == (5 if schedule == "zero" else 15)


def random_durations(rng: random.Random) -> TaskSeconds:
    """Pre, post and attention of like sizes, transfers of hidden states small, weights that matter."""
    return TaskSeconds(
        pre=rng.uniform(0.5, 1.5),
        post=rng.uniform(1, 4),
        offload=rng.uniform(0.1, 0.5),
        load=rng.uniform(0.1, 0.5),
        host_attention=rng.uniform(0.5, 5),
        device_attention=0.5,
        weights=rng.uniform(4, 40),
        kv=rng.uniform(1, 8),
        pin=0.0,
    )


def test_cgopipe_is_never_slower_than_s2_and_s3_and_never_beats_its_bound():
    """100 instances of a fixed generator; both figures are those of this generator, not a law."""
    rng, worst = random.Random(5), 0.0
    for _ in range(100):
        seconds, m = random_durations(rng), rng.randint(3, 12)
        runs = {s: simulate(emit(s, layers=12, micro_batches=m, seconds=seconds)) for s in ("s1", "s2", "s3")}
        bound = layer_bound_s("s1", m, seconds)
        assert runs["s1"].steady_s() >= bound - 1e-9
        assert runs["s1"].makespan_s <= runs["s2"].makespan_s + 1e-9
        assert runs["s1"].makespan_s <= runs["s3"].makespan_s + 1e-9
        worst = max(worst, runs["s1"].steady_s() / bound)
    assert worst < 1.3


def test_a_task_that_needs_a_later_one_is_refused():
    with pytest.raises(ValueError, match=r"task 0 .* needs task 1"):
        simulate([LaneTask("pre", 0, 0, "device", 1.0, (1,)), LaneTask("post", 0, 0, "device", 1.0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "s5"}, "unknown schedule 's5'; known: s1"),
        ({"variant": "last"}, "unknown variant 'last'"),
        ({"micro_batches": 0}, "micro_batches is 0"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_bad_input_is_refused_with_both_facts(change, message):
    good = {"schedule": "s1", "layers": 2, "micro_batches": 2, "seconds": durations(1, 1, 1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        emit(**(good | change))


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 5),
    st.sets(st.integers(0, 6), min_size=1),
    st.booleans(),
)
def test_schedules_with_dense_layers_and_wrapping_have_no_race_either(name, m, streams, wrap):
    layers = max(streams) + 2  # a dense layer behind the last
    seconds = TaskSeconds(1, 1, 1, 1, 1, 1, weights=1, kv=1)
    ordered = sorted(streams)
    tasks = emit(name, layers=layers, micro_batches=m, seconds=seconds, streams=ordered, wrap=wrap)
    assert races(tasks, ordered[0]) == []
    fetched = {task.layer for task in tasks if task.kind == "weights"}
    assert fetched == {*ordered[1:], *([layers] if wrap else [])}
