"""Who waits: one first-in-first-out queue a client, with cancels and out-of-order admissions."""

import heapq
from collections.abc import Iterable

from serving.request import Ask, Client, RequestId


class Backlog:
    """Waiting requests by client. Deleting is O(1); the queues forget the deleted when they meet them.

    A preempted request goes back by its arrival number, so it is ahead of whatever arrived after it.
    """

    def __init__(self):
        self.asks: dict[RequestId, Ask] = {}
        self.waiting_of: dict[Client, int] = {}
        self._queues: dict[Client, list[tuple[int, RequestId]]] = {}

    def add(self, ask: Ask) -> bool:
        """Appends; True if its client had nothing waiting."""
        self.asks[ask.id] = ask
        heapq.heappush(self._queues.setdefault(ask.client, []), (ask.seq, ask.id))
        count = self.waiting_of.get(ask.client, 0)
        self.waiting_of[ask.client] = count + 1
        return count == 0

    def remove(self, id: RequestId) -> bool:
        """Takes a waiting request out; True if its client has nothing waiting any more."""
        client = self.asks.pop(id).client
        count = self.waiting_of[client] - 1
        if count:
            self.waiting_of[client] = count
            return False
        del self.waiting_of[client], self._queues[client]
        return True

    def head(self, client: Client) -> Ask:
        """The client's oldest waiting request. It must have one."""
        queue = self._queues[client]
        while True:
            seq, id = queue[0]
            ask = self.asks.get(id)
            if ask is not None and ask.seq == seq:
                return ask
            heapq.heappop(queue)

    def __contains__(self, id: RequestId) -> bool:
        return id in self.asks

    def __len__(self) -> int:
        return len(self.asks)

    def refill(self, asks: Iterable[Ask]) -> None:
        self.__init__()  # type: ignore[misc]
        for ask in asks:
            self.add(ask)
