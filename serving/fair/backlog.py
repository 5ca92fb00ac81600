"""Waiting requests: one first-in-first-out queue per client, with cancels and out-of-order admissions."""

import heapq

from serving.request import ClientId, RequestId, RequestInfo


class Backlog:
    """Waiting requests by client. Removal is O(1); a queue drops removed entries when they reach its head.

    A preempted request returns to the position of its arrival number, ahead of later arrivals.
    """

    def __init__(self) -> None:
        self.requests: dict[RequestId, RequestInfo] = {}
        self.waiting_of: dict[ClientId, int] = {}
        self._queues: dict[ClientId, list[tuple[int, RequestId]]] = {}

    def add(self, request: RequestInfo) -> None:
        self.requests[request.id] = request
        heapq.heappush(self._queues.setdefault(request.client, []), (request.seq, request.id))
        self.waiting_of[request.client] = self.waiting_of.get(request.client, 0) + 1

    def remove(self, id: RequestId) -> bool:
        """Removes a waiting request; returns whether its client has no waiting request left."""
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
