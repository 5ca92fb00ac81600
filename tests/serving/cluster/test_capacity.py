"""Measured speeds become capacities that follow a slow worker and stay still under noise."""

import random

import pytest

from serving.cluster.capacity import CapacityMeter
from serving.engine.stats import EngineStats


def stats(tok, busy_s, running=4):
    return EngineStats(
        output_tok=tok,
        device_s=busy_s,
        programs=1,
        compile_s={},
        pages={},
        bytes_held=0,
        running=running,
        waiting=0,
        slots=4,
        policy_failure=None,
    )


def play(meter, speeds, reports, noise=0.0, running=4, seed=0):
    """Reports every 2 busy seconds; how often a capacity changed."""
    rng, changes = random.Random(seed), 0
    tok = dict.fromkeys(speeds, 0.0)
    for place in speeds:
        meter.began(place)
    for i in range(1, reports + 1):
        for place, speed in speeds.items():
            tok[place] += 2 * speed * rng.uniform(1 - noise, 1 + noise)
            changes += len(meter.take(place, stats(round(tok[place]), 2.0 * i, running)))
    return changes


def test_a_worker_of_half_the_speed_gets_half_the_capacity():
    meter = CapacityMeter()
    play(meter, {0: 100, 1: 100, 2: 50}, 60, noise=0.1)
    slow, fast = meter.capacity_of[2], meter.capacity_of[0]
    assert slow / fast == pytest.approx(0.5, abs=0.15)


def test_noise_changes_nothing():
    for seed in range(20):
        assert play(CapacityMeter(), {0: 100, 1: 100, 2: 100}, 300, noise=0.3, seed=seed) == 0


def test_without_hysteresis_noise_does_change_capacities():
    assert play(CapacityMeter(hysteresis=0.0), {0: 100, 1: 100}, 300, noise=0.3) > 100


def test_a_change_of_speed_is_followed_in_few_steps():
    meter = CapacityMeter()
    changes = play(meter, {0: 100, 1: 100, 2: 30}, 300, noise=0.2)
    assert 1 <= changes <= 8


def test_an_empty_worker_is_not_a_slow_one():
    """With one output at a time a worker makes few tokens per second, however fast it is."""
    meter = CapacityMeter()
    for place in (0, 1):
        meter.began(place)
    for i in range(1, 50):
        meter.take(0, stats(200 * i, 2.0 * i, running=4))
        meter.take(1, stats(50 * i, 2.0 * i, running=1))
    assert meter.capacity_of == {0: 1.0, 1: 1.0}


def test_a_new_process_begins_at_one():
    meter = CapacityMeter()
    play(meter, {0: 100, 1: 20}, 50)
    assert meter.capacity_of[1] < 0.6
    meter.began(1)
    assert meter.capacity_of[1] == 1.0


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="smoothing is 0"):
        CapacityMeter(smoothing=0)
