"""Executes a schedule for real: one thread per lane, tasks in list order, needs awaited, times recorded.

The list that the simulator executes in virtual time is executed here by `work`, which does what a task stands
for. Weights have a thread of their own, apart from hidden states, since they come from a disk or a slow link.
The first failure stops every lane and is raised in the caller, after all threads have ended.
"""

import threading
import time
from collections.abc import Callable, Sequence

from serving.offload.schedule import LaneTask
from serving.offload.simulate import LaneSpan, SimulatedPass

POLL_S = 1.0  # after which a lane looks whether another has failed, if nobody could wake it


class MeasuredPass(SimulatedPass):
    """Spans measured on this machine instead of modelled."""


def thread_of(task: LaneTask) -> str:
    """The thread that executes a task."""
    return "weights" if task.kind == "weights" else task.lane


def execute(
    tasks: Sequence[LaneTask],
    work: Callable[[LaneTask], None],
    named: Callable[[LaneTask], str] = thread_of,
) -> MeasuredPass:
    """Runs every task and returns when each ran, in seconds from the start.

    Args:
      work: called in a lane's thread; must only touch what the schedule lets it.
      named: which thread executes a task.

    Raises:
      Exception: whatever `work` raised first.
    """
    done = [threading.Event() for _ in tasks]
    failed = threading.Event()
    errors: list[BaseException] = []
    spans: list[LaneSpan | None] = [None] * len(tasks)
    lanes: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        lanes.setdefault(named(task), []).append(index)
    begin = time.perf_counter()

    def stop() -> None:
        """Wakes every lane that waits; none begins another task."""
        failed.set()
        for event in done:
            event.set()

    def run_lane(indices: list[int]) -> None:
        try:
            for index in indices:
                if not _wait(done, tasks[index].needs, failed):
                    return
                start = time.perf_counter() - begin
                work(tasks[index])
                spans[index] = LaneSpan(tasks[index], start, time.perf_counter() - begin)
                done[index].set()
        except BaseException as why:  # raised again in the caller
            errors.append(why)
            stop()

    threads = [
        threading.Thread(target=run_lane, args=(indices,), name=f"lane {lane}")
        for lane, indices in lanes.items()
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except (
        BaseException
    ):  # Ctrl-C, perhaps while some have not been started: stop the lanes before it goes on
        stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    if errors:
        raise errors[0]
    return MeasuredPass(tuple(span for span in spans if span is not None))


def _wait(done: Sequence[threading.Event], needs: Sequence[int], failed: threading.Event) -> bool:
    """Whether all needed tasks have ended; False once another lane has failed."""
    for need in needs:
        while not done[need].wait(POLL_S):
            if failed.is_set():
                return False
    return not failed.is_set()
