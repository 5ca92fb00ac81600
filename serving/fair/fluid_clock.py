"""Fluid virtual time: the counter at which VTC lets a returning client in so that churn starves nobody.

Virtual time V grows with service as each client's share of a fluid server would, per unit of weight:

    dV = charge / (sum of the weights of the clients with live requests)

and never falls behind the smallest counter of a waiting client. A client that starts to wait is lifted to

    max(own counter, min(V, top))                                  if others wait,
    max(own counter, V, counter of the last client that waited)    if none waits,

where `top` is the largest counter of a waiting client, or the smallest plus the largest single charge so far
if that is more.

**The gap keeps VTC's bound 2U.** Lemma 4.3 of the VTC paper (counters of waiting clients are within U) needs
of the lift only that it lands at most U above the smallest counter of the waiting clients and not below it,
and, if none waits, at or above that of the last one that left. A single charge is at most U, and the largest
counter is at most U above the smallest by induction. So both hold, whatever V is.

**No waiting client f is passed for ever.** Let f wait from an admission (or its arrival) on, with counter c,
and let N be the most weight that is live at once until its next admission. V is at least the smallest
counter, so at least c - U when the first newcomer comes; after at most N * U of service V has reached c. From
then on newcomers enter at c or above, behind f, which is older. Ahead of f are at most those that are live at
that moment with counters below c, not below c - U (by the lemma): each takes at most U until it reaches c,
and at most U more with what it has been admitted for. So f is admitted before the server has given
N * U + N * 2U = 3 N U. Under the paper's lift no such bound exists: newcomers enter at the smallest counter,
which stands still while there is always one of them.

Literature: virtual time of generalized processor sharing and weighted fair queueing (Demers, Keshav, Shenker
1989; Parekh and Gallager 1993); start-time fair queueing (Goyal, Vin, Cheng 1996) admits newcomers at the
start tag in service, which is the paper's smallest counter: the lower end of what is used here.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import Account, Amount
from serving.request import ClientId


class FluidClock:
    """Virtual time, in ledger units per unit of weight.

    Attributes:
      virtual: the time; a whole number. live_weight: weights of the clients with live requests.
    """

    def __init__(self, counter: Callable[[ClientId], Amount]) -> None:
        """`counter(client)`: the current counter of a waiting client."""
        self.virtual = 0
        self.live_weight = Fraction(0)
        self._carry: Amount = 0  # service that has not moved the time by a whole unit
        self._counter = counter
        self._known: dict[ClientId, Amount] = {}  # counters of waiting clients when last looked at
        self._grown: dict[ClientId, None] = {}  # waiting clients charged since
        self._largest = 0  # single charge per unit of weight
        self._by_most: LazyMinHeap[ClientId] = LazyMinHeap(lambda client: -self._known[client])

    def charge(self, account: Account, amount: int) -> None:
        """The client is charged; a refund holds the time up until as much has been given again."""
        client, self._carry = account.client, self._carry + amount
        self._largest = max(self._largest, amount * account.den // account.num)
        if self.live_weight and self._carry > 0:
            step = self._carry * self.live_weight.denominator // self.live_weight.numerator
            self.virtual += int(step)
            self._carry -= step * self.live_weight
        if client in self._known:
            self._grown[client] = None

    def tag(self, floor: Amount | None) -> Amount | None:
        """The counter to lift a newcomer to; `floor`: by the paper's rule."""
        if floor is None:
            return None
        self.virtual = max(self.virtual, -(-floor.numerator // floor.denominator))
        self._look()
        client = self._by_most.top()
        if client is None:
            return self.virtual
        top = max(self._known[client], floor + self._largest)
        return max(floor, min(self.virtual, top))

    def _look(self) -> None:
        for client in self._grown:
            self._known[client] = self._counter(client)
            self._by_most.push(client)
        self._grown.clear()

    def join(self, client: ClientId) -> None:
        """A request of the client waits."""
        self._known[client] = self._counter(client)
        self._by_most.push(client)

    def leave(self, client: ClientId) -> None:
        """The client has no waiting request left."""
        self._by_most.discard(client)
        self._known.pop(client, None)
        self._grown.pop(client, None)

    def snapshot(self) -> dict[str, Any]:
        return {"virtual": self.virtual, "carry": str(self._carry), "largest": self._largest}

    def restore(self, state: dict[str, Any]) -> None:
        self.virtual, self._carry = state["virtual"], Fraction(state["carry"])
        self._largest = state["largest"]

    def rebuild(self, live_weight: Fraction, waiting: Iterable[ClientId]) -> None:
        """Builds the rest of the state anew, after a restore."""
        self.live_weight = live_weight
        self._known, self._grown = {client: self._counter(client) for client in waiting}, {}
        self._by_most.clear(self._known)
