"""How far a waiting client falls behind weighted fluid sharing, from the service that was given.

Generalized processor sharing would give a client of weight phi, at every instant at which it has a live
request, phi / (weights of all clients with live requests) of the service that the server gives then. So its
entitlement grows with the virtual time

    dV = dW / (sum of the weights of the clients with live requests),    entitlement = phi * V,

and its lag over an interval is the growth of its entitlement less its service. The meter keeps the largest
lag over all intervals in which the client waits. A service gap compares only two clients that both wait;
the lag also grows while others come and go, so it sees a client that is passed by one newcomer after the
other.

Source: Parekh and Gallager, A generalized processor sharing approach to flow control (1993), definition of
GPS; Demers, Keshav and Shenker, Analysis and simulation of a fair queueing algorithm (1989).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.fair.statistics import jain
from serving.request import ClientId

MIN_WAIT = 0.05  # of all virtual time: clients that wait for less are not in the index


@dataclass(slots=True)
class FluidClient:
    """One client's state.

    Attributes:
      live: its live requests. waits: whether one of them waits.
      ahead: the smallest entitlement less service since it started to wait.
      lag: the largest lag of any interval of waiting, in weighted tokens.
      wait_from, served_from: virtual time and service when it started to wait.
      waited, waited_service: virtual time for which it waited, and its service in it.
    """

    weight: float
    live: int = 0
    waits: bool = False
    ahead: float = 0.0
    lag: float = 0.0
    wait_from: float = 0.0
    served_from: float = 0.0
    waited: float = 0.0
    waited_service: float = 0.0
    served: float = 0.0


class FluidLagMeter:
    """Measures the service lag of every client; O(1) per event and client served.

    Attributes:
      virtual: the virtual time, in weighted tokens per unit of weight.
    """

    def __init__(self, weights: Mapping[ClientId, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self.virtual = 0.0
        self.clients: dict[ClientId, FluidClient] = {}
        self._waiting: dict[ClientId, FluidClient] = {}
        self._live_weight, self._live_clients = 0.0, 0

    def arrive(self, client: ClientId) -> None:
        """A request of the client becomes live."""
        found = self.clients.get(client)
        if found is None:
            found = self.clients[client] = FluidClient(self.weights.get(client, 1.0))
        if not found.live:
            self._live_weight += found.weight
            self._live_clients += 1
        found.live += 1

    def end(self, client: ClientId) -> None:
        """A request of the client finished or was cancelled."""
        found = self.clients[client]
        found.live -= 1
        if not found.live:
            self._live_clients -= 1
            # Exactly 0 when nobody is left, whatever the rounding of weights.
            self._live_weight = self._live_weight - found.weight if self._live_clients else 0.0

    def join(self, client: ClientId) -> None:
        """The client starts to wait."""
        found = self.clients[client]
        found.waits, found.wait_from, found.served_from = True, self.virtual, found.served
        found.ahead = found.weight * self.virtual - found.served
        self._waiting[client] = found

    def leave(self, client: ClientId) -> None:
        """The client has no waiting request left."""
        found = self.clients[client]
        self._look(found)
        found.waits = False
        del self._waiting[client]
        found.waited += self.virtual - found.wait_from
        found.waited_service += found.served - found.served_from

    def serve(self, amount_of: Mapping[ClientId, float]) -> None:
        """Clients received these amounts of service, in weighted tokens; negative: a correction."""
        served, total = [self.clients[client] for client in amount_of], sum(amount_of.values())
        # Virtual time goes back when announced work was not executed: every lag was largest just before.
        for found in served if total >= 0 else self._waiting.values():
            self._look(found)
        if self._live_weight:
            self.virtual += total / self._live_weight
        for found, amount in zip(served, amount_of.values()):
            found.served += amount
        for found in served if total >= 0 else self._waiting.values():
            self._look(found)

    def set_weight(self, client: ClientId, weight: float) -> None:
        """The client's weight changes; what it was entitled to before stays."""
        self.weights[client] = weight
        if (found := self.clients.get(client)) is None:
            return
        waits = found.waits
        if waits:
            self.leave(client)
        if found.live:
            self._live_weight += weight - found.weight
        found.weight = weight
        if waits:
            self.join(client)

    def _look(self, found: FluidClient) -> None:
        if found.waits:
            ahead = found.weight * self.virtual - found.served
            found.lag = max(found.lag, ahead - found.ahead)
            found.ahead = min(found.ahead, ahead)

    def lags(self) -> dict[ClientId, float]:
        """The largest lag of each client so far, in weighted tokens."""
        for found in self.clients.values():
            self._look(found)
        return {client: found.lag for client, found in self.clients.items()}

    def shares(self) -> dict[ClientId, float]:
        """Service over entitlement while it waited, of clients that waited for `MIN_WAIT` of virtual time."""
        found: dict[ClientId, float] = {}
        for client, one in self.clients.items():
            waited, service = one.waited, one.waited_service
            if one.waits:
                waited += self.virtual - one.wait_from
                service += one.served - one.served_from
            if waited > MIN_WAIT * self.virtual:
                found[client] = service / (one.weight * waited)
        return found

    def jain(self) -> float:
        """Jain's index of `shares`; nan below two clients."""
        shares = self.shares()
        return jain(shares.values()) if len(shares) > 1 else float("nan")
