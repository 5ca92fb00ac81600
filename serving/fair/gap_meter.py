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
        row_of, n = self._row_of, len(self._names)
        rows = [row_of[c] for c in clients if c in row_of]
        for row in rows:
            self._served[row] = served[self._names[row]]
        if n < 2:
            return
        all_served, least = self._served[:n], self._least[:n, :n]
        behind_of = []
        for row in rows:  # all columns first: the rows of served clients are read among them
            behind = all_served - all_served[row]
            np.minimum(least[:, row], behind, out=least[:, row])
            behind_of.append(behind)
        for row, behind in zip(rows, behind_of):
            np.minimum(least[row], -behind, out=least[row])
        self._compare([-behind - least[row] for row, behind in zip(rows, behind_of)], rows)
        # A client that was refunded fell behind: then the others are ahead of it.
        self._compare([behind - least[:, row] for row, behind in zip(rows, behind_of)], rows)

    def _compare(self, gaps_of: list[np.ndarray], rows: list[int]) -> None:
        for row, gaps in zip(rows, gaps_of):
            other = int(gaps.argmax())
            if gaps[other] > self.largest:
                f, g = self._names[row], self._names[other]
                self.largest, self.pair = float(gaps[other]), (min(f, g), max(f, g))

    def _grow(self) -> None:
        size = min(self.max_clients, 2 * len(self._served))
        old = len(self._served)
        served, least = np.zeros(size), np.zeros((size, size))
        served[:old], least[:old, :old] = self._served, self._least
        self._served, self._least = served, least
