"""The runtime waits for what it needs: delays change nothing, and a need that is dropped is caught."""

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


class Prompts:
    """m chunks of prompts as micro-batches, each in its own pages; hidden states after all layers."""

    def __init__(self, path):
        self.bench = tiny.Bench(path, None)
        self.resident = tiny.all_resident(self.bench.checkpoint)
        self.n_layers = self.bench.config.n_layers

    def parts(self, m):
        state, programs, stack = self.bench.programs.fresh_state(), self.bench.programs, self.bench.stack
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
        pieces, parts = self.parts(m)
        ResidentRunner(self.resident.arrays, self.n_layers).run(pieces, parts)
        return [np.asarray(part.x_RTD) for part in parts]

    def runner(self, schedule, stays=frozenset(), **options):
        buffers = tiny.layer_buffers(self.bench.checkpoint, stays)
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
def prompts(folder):
    made = {}

    def of(name):
        if name not in made:
            made[name] = Prompts(tiny.saved(name, folder))
        return made[name]

    return of


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
    E, layers = model.bench.config.n_experts, len(model.bench.checkpoint.streams)
    first_fill, per_pass = E, E * layers
    expert = model.bench.checkpoint.expert_bytes
    assert runner.buffers._slots.moved_bytes == (first_fill + 2 * per_pass) * expert


@pytest.mark.parametrize("stays", [1, 4, 7, 12])
def test_with_experts_that_stay_the_others_alone_are_read(prompts, stays):
    model = prompts("plain")
    kept = frozenset(sorted(model.bench.checkpoint.pages, key=lambda at: at[::-1])[:stays])
    runner = model.runner("s1", kept)
    model.run(runner, 2)
    before = runner.buffers._slots.moved_bytes
    same(model.run(runner, 2), model.expected(2))
    assert runner.buffers._slots.moved_bytes - before == (12 - stays) * model.bench.checkpoint.expert_bytes


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


def droppable(tasks, first):
    """Schedules with one need less, and a race that this allows."""
    for index, task in enumerate(tasks):
        for need in task.needs:
            kept = tuple(n for n in task.needs if n != need)
            broken = [*tasks[:index], task._replace(needs=kept), *tasks[index + 1 :]]
            if found := hazards.races(broken, first):
                yield found[0], broken


@pytest.mark.parametrize(
    "schedule", ["s1", "s2", *(pytest.param(name, marks=pytest.mark.long) for name in ("s3", "serial"))]
)
def test_any_need_that_is_dropped_is_caught_when_its_task_is_late(prompts, schedule):
    model, m = prompts("plain"), 2
    want = model.expected(m)
    tasks = model.runner(schedule).new_pass(*model.parts(m)).tasks()
    assert not hazards.races(tasks)
    tried = 0
    for race, broken in droppable(tasks, 0):
        ran = threading.Event()

        def around(task, do, late=broken[race.before], early=broken[race.after], ran=ran):
            if task is late:
                ran.wait(3)  # the task that should have waited overtakes this one if anything lets it
            try:
                do(task)
            finally:
                if task is early:
                    ran.set()

        runner = model.runner(schedule, around=around)
        try:
            got = model.run(runner, m, broken)
        except RaceError:
            tried += 1
            continue
        overtaken = ran.is_set() and any(not np.array_equal(a, b) for a, b in zip(got, want))
        assert overtaken, f"{broken[race.after]} did not need {broken[race.before]}"
        tried += 1
    assert tried >= 8


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
