"""A schedule executed by threads computes what a serial loop does, however the lanes are delayed."""

import random
import threading
import time

import numpy as np
import pytest

from serving.offload.lanes import execute
from serving.offload.schedule import LaneTask, TaskSeconds, emit

D = 6
SECONDS = TaskSeconds(1, 1, 1, 1, 1, 1, weights=1, kv=1, pin=1)


class PagedStack:
    """x -> x + tanh(x W_i) per layer, W_i cut into m row pages that arrive in one of two poisoned buffers."""

    def __init__(self, layers: int, m: int, delays: random.Random | None = None):
        rng = np.random.default_rng(0)
        self.weights = rng.normal(size=(layers, D, D))
        self.hidden = rng.normal(size=(m, 3, D))
        self.query, self.host, self.host_out, self.out = (np.full((m, 3, D), np.nan) for _ in range(4))
        self.buffers, self.staging = np.full((2, D, D), np.nan), np.full((D, D), np.nan)
        self.buffers[0] = self.weights[0]
        self.m, self.delays = m, delays

    def rows(self, page: int) -> slice:
        """Rows of a page; with more pages than rows some are empty."""
        return slice(page * D // self.m, (page + 1) * D // self.m)

    def serial(self) -> np.ndarray:
        x = self.hidden.copy()
        for weight in self.weights:
            x = np.stack([part + np.tanh((2 * part) @ weight) for part in x])
        return x

    def work(self, task: LaneTask) -> None:
        if self.delays is not None:
            time.sleep(self.delays.choice([0, 0, 0, 0.001]))
        i, j = task.layer, task.part
        match task.kind:
            case "pre":
                self.query[j] = 2 * self.hidden[j]
            case "offload":
                self.host[j] = self.query[j]
            case "attention":
                self.host_out[j] = self.host[j]
            case "load":
                self.out[j] = self.host_out[j]
            case "pin":
                self.staging[self.rows(j)] = np.nan
                self.staging[self.rows(j)] = self.weights[i][self.rows(j)]
            case "weights":
                self.buffers[i % 2][self.rows(j)] = np.nan  # poison: whoever reads now reads nothing
                self.buffers[i % 2][self.rows(j)] = self.staging[self.rows(j)]
            case "post":
                self.hidden[j] = self.hidden[j] + np.tanh(self.out[j] @ self.buffers[i % 2])


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("layers", [1, 5])
def test_every_order_that_the_schedule_allows_gives_the_serial_result(layers, m):
    tasks = emit("s1", layers=layers, micro_batches=m, seconds=SECONDS)
    for seed in range(5):
        model = PagedStack(layers, m, random.Random(seed))
        expected = model.serial()
        run = execute(tasks, model.work)
        np.testing.assert_array_equal(model.hidden, expected)
        for span in run.spans:
            assert all(run.spans[need].end_s <= span.start_s for need in span.task.needs)


@pytest.mark.parametrize(
    ("late", "early"), [("post", "weights"), ("weights", "post"), ("weights", "pin"), ("post", "load")]
)
def test_a_dropped_need_changes_the_result_when_its_task_is_late(late, early):
    """The negative control: the task that is no longer awaited is slowed down, and the poison shows."""
    tasks = emit("s1", layers=4, micro_batches=2, seconds=SECONDS)
    index = next(
        i for i, t in enumerate(tasks) if t.kind == late and any(tasks[n].kind == early for n in t.needs)
    )
    dropped = next(n for n in tasks[index].needs if tasks[n].kind == early)
    kept = tuple(n for n in tasks[index].needs if n != dropped)
    broken = [*tasks[:index], tasks[index]._replace(needs=kept), *tasks[index + 1 :]]
    model, ran = PagedStack(4, 2), threading.Event()

    def work(task):
        if task is broken[dropped]:
            assert ran.wait(10)  # the task that should have waited has overtaken this one
        model.work(task)
        if task is broken[index]:
            ran.set()

    expected = model.serial()
    execute(broken, work)
    assert not np.array_equal(model.hidden, expected)


def test_a_failure_in_one_lane_reaches_the_caller_within_a_second_and_ends_every_thread():
    tasks = emit("s1", layers=50, micro_batches=3, seconds=SECONDS)

    def work(task):
        if task.kind == "weights" and task.layer == 2:
            raise OSError("the disk failed")

    before, start = threading.active_count(), time.monotonic()
    with pytest.raises(OSError, match="the disk failed"):
        execute(tasks, work)
    assert time.monotonic() - start < 5  # a second, and the load of other work
    assert threading.active_count() == before


@pytest.mark.parametrize("started", [0, 1, 2, 3])
def test_ctrl_c_while_lanes_start_leaves_none_behind(monkeypatch, started):
    tasks = emit("s1", layers=3, micro_batches=2, seconds=SECONDS)
    start, count = threading.Thread.start, []

    def interrupted(thread):
        if len(count) == started:
            raise KeyboardInterrupt
        count.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(tasks, lambda task: None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]
