"""The runtime waits for what it needs: delays change nothing, and a need that is dropped is caught."""

import functools
import random
import threading
import time

import numpy as np
import pytest

from serving.engine.device_state import PLAIN
from serving.offload import hazards
from serving.offload.runtime.buffers import RaceError
from serving.offload.runtime.pieces import Pieces
from serving.offload.runtime.resident import ResidentRunner
from serving.offload.runtime.streaming import StreamRunner
from serving.offload.schedule import SCHEDULES
from tests.serving.offload.runtime import tiny


class Prompts:
    """m chunks of prompts as micro-batches, each in its own pages; hidden states after all layers."""

    def __init__(self, engines, name):
        self.checkpoint, self.programs = engines.checkpoint(name), engines.of(name).programs
        self.config, self.n_layers = self.checkpoint.config, self.checkpoint.config.n_layers
        self.resident = tiny.all_resident(self.checkpoint)
        self._expected = {}

    def parts(self, m):
        state, programs, stack = self.programs.fresh_state(), self.programs, self.programs.stack
        pieces = Pieces(programs.compiled, stack.layers, stack._params, dict(state.cache.pools))
        parts = []
        for j in range(m):
            batch = programs.blank_prefill(1, tiny.CHUNK, PLAIN)
            batch.tokens_RC[0], batch.count_R[0] = tiny.greedy(j, tiny.CHUNK), tiny.CHUNK - j % 2
            for _kind, table in batch.tables.items():
                pages = tiny.CHUNK // tiny.CONFIG.page_size
                table[0, :pages] = 1 + pages * j + np.arange(pages)
            parts.append(pieces.start_prefill(batch, PLAIN))
        return pieces, parts

    def expected(self, m):
        if m not in self._expected:
            pieces, parts = self.parts(m)
            ResidentRunner(self.resident.arrays, self.n_layers).run(pieces, parts)
            self._expected[m] = [np.asarray(part.x_RTD) for part in parts]
        return self._expected[m]

    def runner(self, schedule, stays=frozenset(), **options):
        buffers = tiny.layer_buffers(self.checkpoint, stays)
        kept = {at: self.resident.arrays[at] for at in stays}
        return StreamRunner(buffers, kept, n_layers=self.n_layers, schedule=schedule, **options)

    def run(self, runner, m, tasks=None):
        pieces, parts = self.parts(m)
        if tasks is None:
            runner.run(pieces, parts)
        else:
            runner.new_pass(pieces, parts).run(tasks)
        return [np.asarray(part.x_RTD) for part in parts]


@pytest.fixture(scope="module")
def prompts(engines):
    return functools.cache(lambda name: Prompts(engines, name))


def same(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("name", ["plain", "odd experts", "shared", "dense first"])
def test_hidden_states_are_the_resident_models_bit_by_bit(prompts, name, schedule, m):
    model = prompts(name)
    runner = model.runner(schedule)
    for _ in range(2):  # the second pass begins with what the first has read at its end
        same(model.run(runner, m), model.expected(m))
    E, layers = model.config.n_experts, len(model.checkpoint.streams)
    first_fill, per_pass = E, E * layers
    expert = model.checkpoint.expert_bytes
    assert runner.buffers._slots.moved_bytes == (first_fill + 2 * per_pass) * expert


@pytest.mark.parametrize("stays", [1, 4, 7, 12])
def test_with_experts_that_stay_the_others_alone_are_read(prompts, stays):
    model = prompts("plain")
    kept = frozenset(sorted(model.checkpoint.pages, key=lambda at: at[::-1])[:stays])
    runner = model.runner("s1", kept)
    model.run(runner, 2)
    before = runner.buffers._slots.moved_bytes
    same(model.run(runner, 2), model.expected(2))
    assert runner.buffers._slots.moved_bytes - before == (12 - stays) * model.checkpoint.expert_bytes


def stressed(prompts, passes):
    model, delays = prompts("odd experts"), random.Random(0)

    def late(task, do):
        time.sleep(delays.choice([0, 0, 0.0005, 0.002]))
        do(task)

    for m in (1, 3):
        want = model.expected(m)
        for schedule in ("s1", "s2", "s4"):
            runner = model.runner(schedule, around=late)
            for _ in range(passes):
                same(model.run(runner, m), want)


def test_random_delays_in_every_lane_change_no_bit(prompts):
    stressed(prompts, 5)


@pytest.mark.long
def test_random_delays_in_two_hundred_passes_change_no_bit(prompts):
    stressed(prompts, 34)


# What the runtime has one of, so that a race can be seen. It reads pages without staging, and moves no K/V.
SHARED = ("weights", "hidden", "query", "host query", "host output", "output")


def droppable(tasks, first, every=False):
    """Schedules with one need less, or with none of a task's, and the first race that this allows."""
    for index, task in enumerate(tasks):
        for need in [None] if every else task.needs:
            kept = () if every else tuple(n for n in task.needs if n != need)
            broken = [*tasks[:index], task._replace(needs=kept), *tasks[index + 1 :]]
            found = [race for race in hazards.races(broken, first) if race.buffer[0] in SHARED]
            if found:
                yield found[0], broken


@pytest.mark.parametrize("schedule", ["s1", "s2", "s3", "serial"])
def test_any_need_that_is_dropped_is_caught_when_its_task_is_late(prompts, schedule):
    assert dropped_needs_are_caught(prompts("plain"), schedule, 2) >= 8


@pytest.mark.long
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("name", ["dense between", "odd experts"])
@pytest.mark.parametrize("m", [1, 3])
def test_any_need_that_is_dropped_is_caught_in_other_stacks_too(prompts, name, schedule, m):
    dropped_needs_are_caught(prompts(name), schedule, m)


def dropped_needs_are_caught(model, schedule, m):
    want = model.expected(m)
    tasks, first = model.runner(schedule).new_pass(*model.parts(m)).tasks(), model.checkpoint.streams[0]
    assert not hazards.races(tasks, first)
    tried = 0
    # A barrier's needs can cover each other: then no single one is missed, and a task loses all of its.
    for race, broken in list(droppable(tasks, first)) or droppable(tasks, first, every=True):
        before, after = broken[race.before], broken[race.after]
        got, overtaken = overtaking(model, schedule, m, broken, race)
        assert overtaken, f"{after} waited for {before} without saying so"
        changed = got is None or any(not np.array_equal(a, b) for a, b in zip(got, want))
        assert changed, f"{after} did not need {before}"
        tried += 1
    assert tried
    return tried


def overtaking(model, schedule, m, broken, race):
    """The hidden states of a pass in which the later task of a race runs first, or None where it was refused;
    and whether it did run first. Needs no clock: the earlier task is held until the later one has ended."""
    late, early, ran = broken[race.before], broken[race.after], threading.Event()

    def around(task, do):
        if task is late and not ran.wait(20):
            raise TimeoutError
        try:
            do(task)
        except BaseException:
            ran.set()  # whatever is refused ends the pass
            raise
        if task is early:
            ran.set()

    try:
        return model.run(model.runner(schedule, around=around), m, broken), True
    except TimeoutError:
        return None, False
    except RaceError:
        return None, True


def _nan(view):
    view.fill(np.nan)
    return view


def test_a_page_that_is_poisoned_and_not_read_shows_as_nan(prompts):
    """The control: NaN in a buffer does reach the hidden states."""
    model = prompts("plain")
    runner = model.runner("s1")
    slots = runner.buffers._slots
    slots._source.read_page = lambda page, buffer, read=slots._source.read_page: [
        _nan(view) for view in read(page, buffer)
    ]
    got = model.run(runner, 1)
    assert any(np.isnan(part).any() for part in got)
