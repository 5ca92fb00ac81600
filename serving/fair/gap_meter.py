"""The largest service gap of two clients that both wait, in O(clients) per event.

For every pair (f, g) of clients that wait, the meter keeps the smallest W_f - W_g since both started to wait,
as a row of a matrix. Service to f compares one row and updates one column. The matrix has room for
`max_clients`; clients that start to wait beyond it are counted in `left_out`, and `largest` is then a lower
bound: the exact gap among the clients that were tracked.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from serving.request import ClientId

MAX_CLIENTS = 2048  # a matrix of 32 MB


class GapMeter:
    """Measures the largest |W_f - W_g| over all intervals in which clients f and g both wait.

    Attributes:
      largest, pair: the gap and its clients, in alphabetical order.
      waiting: the clients that wait. left_out: times that one of them found no room in the matrix.
    """

    def __init__(self, max_clients: int = MAX_CLIENTS) -> None:
        self.largest = 0.0
        self.pair: tuple[ClientId, ClientId] | None = None
        self.waiting: dict[ClientId, None] = {}
        self.left_out = 0
        self.max_clients = max_clients
        self._names: list[ClientId] = []  # of the rows in use
        self._row_of: dict[ClientId, int] = {}
        self._served = np.zeros(16)
        self._least = np.zeros((16, 16))  # [f, g]: the smallest W_f - W_g since both wait

    def join(self, client: ClientId, served: Mapping[ClientId, float]) -> None:
        """The client starts to wait. `served`: service of every client so far."""
        self.waiting[client] = None
        n = len(self._names)
        if n >= self.max_clients:
            self.left_out += 1
            return
        if n == len(self._served):
            self._grow()
        self._names.append(client)
        self._row_of[client] = n
        self._served[n] = served[client]
        ahead = self._served[n] - self._served[: n + 1]
        self._least[n, : n + 1], self._least[: n + 1, n] = ahead, -ahead

    def leave(self, client: ClientId) -> None:
        """The client has no waiting request left."""
        del self.waiting[client]
        row = self._row_of.pop(client, None)
        if row is None:
            return
        last = len(self._names) - 1
        name = self._names.pop()
        if row != last:  # the last row takes its place
            self._names[row], self._row_of[name] = name, row
            self._served[row] = self._served[last]
            self._least[row, :last] = self._least[last, :last]
            self._least[:last, row] = self._least[:last, last]
            self._least[row, row] = 0.0

    def update(self, clients: Iterable[ClientId], served: Mapping[ClientId, float]) -> None:
        """The service of these clients has changed."""
        rows = [(self._row_of[c], served[c]) for c in clients if c in self._row_of]
        n = len(self._names)
        if not rows or n < 2:
            for row, amount in rows:
                self._served[row] = amount
            return
        index = np.array([row for row, _ in rows])
        self._served[index] = [amount for _, amount in rows]
        ahead = self._served[index, None] - self._served[:n]
        least = self._least[:n, :n]
        least[:, index] = np.minimum(least[:, index], -ahead.T)
        least[index] = np.minimum(least[index], ahead)
        self._compare(ahead - least[index], [row for row, _ in rows])
        # A client that was refunded fell behind: then the others are ahead of it.
        self._compare(-ahead - least[:, index].T, [row for row, _ in rows])

    def _compare(self, gaps: np.ndarray, rows: list[int]) -> None:
        best = int(gaps.argmax())
        gap = float(gaps.flat[best])
        if gap > self.largest:
            row, other = divmod(best, gaps.shape[1])
            f, g = self._names[rows[row]], self._names[other]
            self.largest, self.pair = gap, (min(f, g), max(f, g))

    def _grow(self) -> None:
        size = min(self.max_clients, 2 * len(self._served))
        old = len(self._served)
        served, least = np.zeros(size), np.zeros((size, size))
        served[:old], least[:old, :old] = self._served, self._least
        self._served, self._least = served, least
