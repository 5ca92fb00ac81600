"""Who waits: one first-in-first-out queue a client, with cancels and out-of-order admissions."""

import heapq
from collections.abc import Iterable

from serving.request import ClientId, RequestId, RequestInfo


class Backlog:
    """Waiting requests by client. Deleting is O(1); the queues forget the deleted when they meet them.

    A preempted request goes back by its arrival number, so it is ahead of whatever arrived after it.
    """

    def __init__(self):
        self.requests: dict[RequestId, RequestInfo] = {}
        self.waiting_of: dict[ClientId, int] = {}
        self._queues: dict[ClientId, list[tuple[int, RequestId]]] = {}

    def add(self, request: RequestInfo) -> bool:
        """Appends; True if its client had nothing waiting."""
        self.requests[request.id] = request
        heapq.heappush(self._queues.setdefault(request.client, []), (request.seq, request.id))
        count = self.waiting_of.get(request.client, 0)
        self.waiting_of[request.client] = count + 1
        return count == 0

    def remove(self, id: RequestId) -> bool:
        """Takes a waiting request out; True if its client has nothing waiting any more."""
        client = self.requests.pop(id).client
        count = self.waiting_of[client] - 1
        if count:
            self.waiting_of[client] = count
            return False
        del self.waiting_of[client], self._queues[client]
        return True

    def head(self, client: ClientId) -> RequestInfo:
        """The client's oldest waiting request. It must have one."""
        queue = self._queues[client]
        while True:
            seq, id = queue[0]
            request = self.requests.get(id)
            if request is not None and request.seq == seq:
                return request
            heapq.heappop(queue)

    def __contains__(self, id: RequestId) -> bool:
        return id in self.requests

    def __len__(self) -> int:
        return len(self.requests)

    def refill(self, requests: Iterable[RequestInfo]) -> None:
        self.__init__()  # type: ignore[misc]
        for request in requests:
            self.add(request)
