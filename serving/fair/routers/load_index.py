"""Live requests by worker, with the workers in order of load: the least loaded one without a scan."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

type WorkerId = int


class LoadIndex(dict[WorkerId, int]):
    """Worker -> live requests. Load is live requests per unit of capacity."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity_of: dict[WorkerId, float] = {}
        self._loads: list[float] = []  # the different loads, ascending
        self._at: dict[float, list[WorkerId]] = {}  # load -> its workers, ascending

    def set_capacity(self, worker: WorkerId, capacity: float) -> None:
        """From now on the worker's load is counted with this capacity; before its first load, too."""
        if worker in self:
            self._remove(worker)
        self.capacity_of[worker] = capacity
        if worker in self:
            self._insert(worker)

    def load(self, worker: WorkerId) -> float:
        return self[worker] / self.capacity_of[worker]

    def ordered(self, last: WorkerId) -> Iterator[tuple[float, WorkerId]]:
        """(load, worker), least loaded first. Among equals those after `last` come first: ties rotate."""
        for load in self._loads:
            workers = self._at[load]
            turn = bisect_right(workers, last)
            for worker in workers[turn:]:
                yield load, worker
            for worker in workers[:turn]:
                yield load, worker

    def __setitem__(self, worker: WorkerId, live: int) -> None:
        if worker in self:
            self._remove(worker)
        super().__setitem__(worker, live)
        self._insert(worker)

    def __delitem__(self, worker: WorkerId) -> None:
        self._remove(worker)
        super().__delitem__(worker)
        del self.capacity_of[worker]

    def _insert(self, worker: WorkerId) -> None:
        load = self[worker] / self.capacity_of[worker]
        workers = self._at.get(load)
        if workers is None:
            self._at[load] = [worker]
            insort(self._loads, load)
        else:
            insort(workers, worker)

    def _remove(self, worker: WorkerId) -> None:
        load = self[worker] / self.capacity_of[worker]
        workers = self._at[load]
        del workers[bisect_left(workers, worker)]
        if not workers:
            del self._at[load]
            del self._loads[bisect_left(self._loads, load)]
