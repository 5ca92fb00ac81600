"""Workers are added while outputs wait, let go when there is room, and never in quick succession."""

import random

import pytest

from serving.cluster.autoscaler import Autoscaler, ScalingRule

RULE = ScalingRule(min_workers=1, max_workers=4, cool_down_s=10.0, wait_s=3.0, idle_s=20.0)


def test_a_worker_is_added_after_outputs_have_waited_long_enough():
    scaler = Autoscaler(RULE)
    told = [scaler.decide(t, workers=1, waiting=5, live=4, room=4) for t in range(5)]
    assert told == [0, 0, 0, 1, 0]


def test_a_queue_that_empties_in_between_adds_none():
    scaler = Autoscaler(RULE)
    assert not any(scaler.decide(t, workers=1, waiting=5 * (t % 2), live=4, room=4) for t in range(50))


def test_an_idle_worker_goes_down_to_the_least():
    scaler, workers = Autoscaler(RULE), 4
    for t in range(400):
        workers += scaler.decide(t, workers=workers, waiting=0, live=0, room=4)
    assert workers == 1


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_bounds_and_pauses_hold(seed):
    rng, scaler, workers, last_s = random.Random(seed), Autoscaler(RULE), 2, -100.0
    load = 0
    for step in range(2000):
        now_s = step * 0.5
        load = max(0, load + rng.randint(-3, 3))
        by = scaler.decide(now_s, workers=workers, waiting=max(0, load - 4 * workers), live=load, room=4)
        if by:
            assert now_s - last_s >= RULE.cool_down_s
            last_s = now_s
        workers += by
        assert 1 <= workers <= 4


def test_bounds_that_disagree_are_refused():
    with pytest.raises(ValueError, match="3 to 2"):
        ScalingRule(min_workers=3, max_workers=2)
