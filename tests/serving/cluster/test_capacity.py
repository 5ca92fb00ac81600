"""Measured speeds become capacities that follow a slow worker and stay still under noise."""

import random

import pytest

from serving import fair
from serving.cluster.capacity import CapacityMeter
from serving.config import Limits
from serving.engine.stats import EngineStats
from serving.kvcache.groups import FullGroup
from serving.kvcache.manager import KVCacheManager
from serving.request import RequestInfo
from serving.sim.cost import StepCost
from serving.sim.simulator import ServingSimulation
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.worker import Worker
from serving.sim.workload import SimulatedRequest

COST = StepCost()


def stats(busy_s, steps, rows, extend_tok=0):
    return EngineStats(
        output_tok=rows,
        prompt_tok=extend_tok,
        decode_steps=steps,
        decode_rows=rows,
        device_s=busy_s,
        programs=1,
        compile_s={},
        pages={},
        bytes_held=0,
        running=1,
        waiting=0,
        slots=4,
        policy_failure=None,
    )


class Load:
    """A worker's counters while it works: its speed, and how many rows a step has."""

    def __init__(self, speed, rows, seed, noise=0.0):
        self.speed, self.rows, self.noise, self.rng = speed, rows, noise, random.Random(seed)
        self.busy_s = self.steps = self.row_steps = self.extend_tok = 0

    def work(self, seconds=2.0):
        """The counters after so many busy seconds more."""
        end_s = self.busy_s + seconds
        factor = self.rng.uniform(1 - self.noise, 1 + self.noise) / self.speed
        while self.busy_s < end_s:
            rows = self.rng.randint(*self.rows)
            if self.rng.random() < 0.1:
                prompt = self.rng.randint(20, 200)
                self.extend_tok += prompt
                self.busy_s += factor * COST.prefill_s * prompt
            self.steps += 10
            self.row_steps += 10 * rows
            self.busy_s += factor * COST.decode(rows, 100 * rows, 10)
        return stats(self.busy_s, self.steps, self.row_steps, self.extend_tok)


def play(meter, loads, reports):
    """How often a capacity changed."""
    changes = 0
    for place in range(len(loads)):
        meter.began(place)
    for _ in range(reports):
        for place, load in enumerate(loads):
            changes += len(meter.take(place, load.work()))
    return changes


def loads(speeds, rows=(1, 4), **more):
    return [Load(speed, rows, seed, **more) for seed, speed in enumerate(speeds)]


@pytest.mark.parametrize("rows", [(1, 1), (1, 3), (4, 4), (2, 60)])
def test_a_worker_of_half_the_speed_gets_half_the_capacity_however_full_it_is(rows):
    meter = CapacityMeter()
    play(meter, loads([1, 1, 0.5], rows, noise=0.1), 60)
    slow, fast = meter.capacity_of[2], meter.capacity_of[0]
    assert slow / fast == pytest.approx(0.5, abs=0.15)


def test_noise_changes_nothing():
    for seed in range(6):
        noisy = [Load(1.0, (1, 8), 10 * seed + i, noise=0.3) for i in range(3)]
        assert play(CapacityMeter(), noisy, 60) == 0


def test_without_hysteresis_noise_does_change_capacities():
    assert play(CapacityMeter(hysteresis=0.0), loads([1, 1], noise=0.3), 100) > 30


def test_a_change_of_speed_is_followed_in_few_steps():
    meter = CapacityMeter()
    changes = play(meter, loads([1, 1, 0.3], noise=0.2), 100)
    assert 1 <= changes <= 8


@pytest.mark.parametrize("rows", [(1, 1), (1, 2)])
def test_a_worker_with_little_to_do_is_not_a_slow_one(rows):
    """With one output at a time it makes few tokens a second, however fast it is."""
    meter, full = CapacityMeter(), (4, 60)
    play(meter, [Load(1.0, full, 0), Load(1.0, rows, 1), Load(1.0, full, 2)], 100)
    assert meter.tok_per_busy_s(1) < 0.25 * meter.tok_per_busy_s(0), "tokens a second would say so"
    assert set(meter.capacity_of.values()) == {1.0}


def test_an_idle_worker_keeps_its_capacity():
    meter = CapacityMeter()
    busy = loads([1, 1, 0.25])
    play(meter, busy, 30)
    before = dict(meter.capacity_of)
    assert before[2] < 0.5
    idle = stats(busy[0].busy_s, busy[0].steps, busy[0].row_steps, busy[0].extend_tok)
    for _ in range(200):
        assert not meter.take(0, idle)
        assert not meter.take(1, busy[1].work())
        assert not meter.take(2, busy[2].work())
    assert meter.capacity_of == before


def test_a_new_process_begins_at_one():
    meter = CapacityMeter()
    play(meter, loads([1, 0.2]), 50)
    assert meter.capacity_of[1] < 0.6
    meter.began(1)
    assert meter.capacity_of[1] == 1.0


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="smoothing is 0"):
        CapacityMeter(smoothing=0)


# ---- the meter in the loop, in virtual time ----


class MeteredWorker(Worker):
    """A simulated worker that counts as an engine does, and tells the meter after each step."""

    def __init__(self, place, meter, router, speed):
        memory = KVCacheManager([FullGroup(500)], page_tok=20, max_slots=16, max_tok=4000, span_tok=2000)
        limits = Limits(chunk_tok=2000, step_tok=2000, decode_steps=(1,), mixed=False)
        super().__init__(lambda match: fair.make("dlpm", match=match), memory, limits, COST.at_speed(speed))
        self.place, self.meter, self.router = place, meter, router
        self.steps = self.rows = self.extend_tok = 0
        meter.began(place)

    def _record_tokens(self, step):
        plan = step.plan
        self.steps += step.steps if plan.decode else 0
        self.rows += step.steps * len(plan.decode)
        self.extend_tok += sum(chunk.end - chunk.start for chunk in plan.chunks)
        done = super()._record_tokens(step)
        told = self.meter.take(self.place, stats(self.busy_s, self.steps, self.rows, self.extend_tok))
        for place, capacity in told.items():
            self.router.set_capacity(place, capacity)
        return done


def light(count, per_s, seed):
    """Requests of three clients with prefixes of their own."""
    rng, now_s, made = random.Random(seed), 0.0, []
    for i in range(count):
        now_s += rng.expovariate(per_s)
        client, output = rng.choice("abc"), rng.randint(10, 40)
        tokens = SyntheticTokens([(client, 200), (i, 40)])
        made.append(SimulatedRequest(f"r{i}", client, now_s, tokens, 240, output, output))
    return made


def simulated(speeds, seed=0):
    """The router, and the share of the time that each worker was busy."""
    meter, router = CapacityMeter(), fair.make("d2lpm", quantum_tok=500)
    workers = [MeteredWorker(place, meter, router, speed) for place, speed in enumerate(speeds)]
    result = ServingSimulation(workers, light(400, 1.0, seed), router).run()
    return router, [busy_s / result.end_s for busy_s in result.busy_s]


@pytest.mark.parametrize("seed", range(2))
def test_under_light_load_a_worker_of_a_quarter_of_the_speed_is_found_and_its_quanta_follow(seed):
    router, busy = simulated([1.0, 1.0, 0.25], seed)
    assert max(busy[:2]) < 0.4, "light"
    assert router.capacity_of[2] < 0.5
    router.dispatch(RequestInfo("x", "new", 0, 10, 1), [("x", 10)])
    quanta = [router.credit("new", w) + router.spent.get(("new", w), 0) for w in range(3)]
    assert quanta[2] / quanta[0] == pytest.approx(router.capacity_of[2] / router.capacity_of[0], rel=0.01)


def test_under_light_load_equal_workers_stay_equal():
    assert simulated([1.0, 1.0, 1.0])[0].capacity_of == {0: 1.0, 1: 1.0, 2: 1.0}
