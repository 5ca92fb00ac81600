"""A pass over all layers that streams every expert: a schedule's tasks executed by lanes.

The tasks are those that the simulator prices (`serving.offload.schedule`). Each lane is a thread: the device
computes, the host attends, two lanes move hidden states, one reads experts into layer buffers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from serving.offload.lanes import MeasuredPass, execute
from serving.offload.runtime.buffers import ExpertArrays, LayerBuffers, RaceError
from serving.offload.runtime.pieces import Handover, MicroBatch, Pieces
from serving.offload.schedule import LaneTask, TaskSeconds, emit
from serving.offload.simulate import LaneSpan

NO_SECONDS = TaskSeconds(0, 0, 0, 0, 0, 0, weights=0, kv=0)

type Around = Callable[[LaneTask, Callable[[LaneTask], None]], None]


class StreamPass:
    """One pass.

    Args:
      n_layers, schedule: as for `emit`.
      resident: experts that stay, by layer and expert.
      around: called with each task and the function that does it; for tests and experiments.
    """

    def __init__(
        self,
        pieces: Pieces,
        parts: Sequence[MicroBatch],
        buffers: LayerBuffers,
        resident: Mapping[tuple[int, int], ExpertArrays],
        *,
        n_layers: int,
        schedule: str,
        wrap: bool = True,
        around: Around | None = None,
    ):
        self._pieces, self._parts, self._buffers, self._resident = pieces, parts, buffers, resident
        self._n_layers, self._schedule, self._wrap = n_layers, schedule, wrap
        self._around = around
        self._computed: set[tuple[int, int]] = set()
        self._query, self._host_query = Handover("the query"), Handover("the query on the host")
        self._host_out, self._out = Handover("attention's output on the host"), Handover("attention's output")

    def tasks(self) -> list[LaneTask]:
        """What the pass executes."""
        return emit(
            self._schedule,
            layers=self._n_layers,
            micro_batches=len(self._parts),
            seconds=NO_SECONDS,
            streams=[i for i in sorted(self._buffers.streamed) if i < self._n_layers],
            wrap=self._wrap,
        )

    def run(self, tasks: Sequence[LaneTask] | None = None) -> MeasuredPass:
        """Executes the tasks; the first layer's experts are read before them if no pass has done so.

        Raises:
          RaceError: a schedule that does not wait for what it needs.
          OSError, ValueError: reading failed.
        """
        filled = self._first_fill()
        run = execute(self.tasks() if tasks is None else tasks, self._work)
        self._buffers.next_pass()
        if filled is None:
            return run
        late = filled.end_s
        spans = [span._replace(start_s=span.start_s + late, end_s=span.end_s + late) for span in run.spans]
        return MeasuredPass((filled, *spans))

    def _first_fill(self) -> LaneSpan | None:
        first, start_s = self._buffers.first, time.perf_counter()
        if self._buffers.holds(first):
            return None
        self._buffers.reset()
        self._buffers.fill(first, 0, 1)
        return LaneSpan(LaneTask("weights", first, 0, "to_device", 0.0), 0.0, time.perf_counter() - start_s)

    # ---- tasks ----

    def _work(self, task: LaneTask) -> None:
        if self._around is None:
            self._do(task)
        else:
            self._around(task, self._do)

    def _do(self, task: LaneTask) -> None:
        i, j = task.layer, task.part
        match task.kind:
            case "pre":
                self._query.put(i, j, self._project(i, j))
            case "offload":
                self._host_query.put(i, j, self._pieces.to_host(self._query.take(i, j)))
            case "attention":
                out = self._pieces.attend(i, self._parts[j], self._host_query.take(i, j))
                self._host_out.put(i, j, out)
            case "load":
                self._out.put(i, j, self._pieces.to_device(self._host_out.take(i, j)))
            case "post":
                self._post(i, j, self._out.take(i, j))
            case "block":
                self._block(i, j)
            case "weights":
                self._buffers.fill(i, j, self._pages)
            case "kv" | "store" | "pin":
                pass  # K/V stay where attention runs, and pages are read without staging
            case _:
                raise ValueError(f"a task of kind {task.kind!r} is unknown")

    @property
    def _pages(self) -> int:
        """Pages in which a layer's experts arrive: one per micro-batch in s1, one in all others."""
        return len(self._parts) if self._schedule == "s1" else 1

    def _project(self, i: int, j: int) -> Any:
        if i and (i - 1, j) not in self._computed:
            raise RaceError(f"layer {i} begins before layer {i - 1} has computed micro-batch {j}")
        return jax.block_until_ready(self._pieces.project(i, self._parts[j]))

    def _post(self, i: int, j: int, out: jax.Array) -> None:
        self._pieces.feed_forward(i, self._parts[j], out, self._find)
        self._computed.add((i, j))
        if j == len(self._parts) - 1 and i in self._buffers.streamed:
            self._buffers.release(i)

    def _block(self, i: int, j: int) -> None:
        """A whole layer; in zero one task stands for every micro-batch."""
        every = range(len(self._parts)) if self._schedule == "zero" else [j]
        for part in every:
            qkv = self._pieces.to_host(self._project(i, part))
            self._post(i, part, self._pieces.to_device(self._pieces.attend(i, self._parts[part], qkv)))

    def _find(self, layer: int, expert: int) -> ExpertArrays:
        stays = self._resident.get((layer, expert))
        return self._buffers.expert(layer, expert) if stays is None else stays
