"""Executes a schedule in virtual time: each lane is first in, first out, and a task starts when lane and
needs allow.

Issuing a task costs nothing. A task that waits blocks those behind it on its lane, as on a real copy stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serving.offload.schedule import LaneTask, TaskSeconds


class LaneSpan(NamedTuple):
    """When a task ran, in seconds from the start of the pass."""

    task: LaneTask
    start_s: float
    end_s: float


@dataclass(frozen=True)
class SimulatedPass:
    """Attributes:
    spans: one per task, in the schedule's order.
    makespan_s: end of the last task.
    """

    spans: tuple[LaneSpan, ...]

    @property
    def makespan_s(self) -> float:
        return max(span.end_s for span in self.spans)

    def busy_s(self) -> dict[str, float]:
        """Seconds that each lane works."""
        busy: dict[str, float] = {}
        for span in self.spans:
            busy[span.task.lane] = busy.get(span.task.lane, 0.0) + span.end_s - span.start_s
        return busy

    def bubble_s(self) -> dict[str, float]:
        """Seconds that each lane waits between its first start and its last end."""
        first, last = dict[str, float](), dict[str, float]()
        for span in self.spans:
            lane = span.task.lane
            first[lane] = min(first.get(lane, span.start_s), span.start_s)
            last[lane] = max(last.get(lane, 0.0), span.end_s)
        return {lane: last[lane] - first[lane] - busy for lane, busy in self.busy_s().items()}

    def layer_ends_s(self) -> list[float]:
        """End of each layer: when the device has finished its last micro-batch."""
        ends: dict[int, float] = {}
        for span in self.spans:
            if span.task.lane == "device":
                ends[span.task.layer] = max(ends.get(span.task.layer, 0.0), span.end_s)
        return [ends[layer] for layer in sorted(ends)]

    def steady_s(self) -> float:
        """Seconds per layer in the middle of the pass, away from filling and draining."""
        ends = self.layer_ends_s()
        if len(ends) < 3:
            return self.makespan_s / len(ends)
        first, last = len(ends) // 3, max(2 * len(ends) // 3, len(ends) // 3 + 1)
        return (ends[last] - ends[first]) / (last - first)


def simulate(tasks: Sequence[LaneTask]) -> SimulatedPass:
    """Runs the tasks in virtual time.

    Raises:
      ValueError: a task needs one that comes later in the list, so that it could wait for ever.
    """
    free: dict[str, float] = {}
    spans: list[LaneSpan] = []
    for index, task in enumerate(tasks):
        if late := [need for need in task.needs if not 0 <= need < index]:
            raise ValueError(
                f"task {index} ({task.kind}) needs task {late[0]}, which does not come before it"
            )
        start = max([free.get(task.lane, 0.0), *(spans[need].end_s for need in task.needs)])
        spans.append(LaneSpan(task, start, start + task.seconds))
        free[task.lane] = start + task.seconds
    return SimulatedPass(tuple(spans))


def critical_path_s(tasks: Sequence[LaneTask]) -> float:
    """The longest chain of needs, lanes unlimited: no execution of these tasks is shorter."""
    ends: list[float] = []
    for task in tasks:
        ends.append(task.seconds + max([0.0, *(ends[need] for need in task.needs)]))
    return max(ends)


def layer_bound_s(schedule: str, micro_batches: int, seconds: TaskSeconds) -> float:
    """Seconds that a layer takes at least in steady state: those of its busiest lane.

    Raises:
      ValueError: a schedule that has no such bound.
    """
    t, m = seconds, micro_batches
    if schedule in ("s1", "s2", "s3"):
        return max(t.weights + m * t.load, m * t.host_attention, m * (t.pre + t.post), m * t.offload, t.pin)
    if schedule in ("s4", "flexgen"):
        return max(t.weights + m * t.kv, m * (t.pre + t.device_attention + t.post), m * t.store)
    if schedule == "zero":
        return max(t.weights, m * (t.pre + t.device_attention + t.post))
    if schedule == "serial":
        return t.weights + m * (t.pre + t.offload + t.host_attention + t.load + t.post)
    raise ValueError(f"no bound is known for schedule {schedule!r}")
