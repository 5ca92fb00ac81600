"""Exact accounts of what each client was charged, in integers (and fractions, where weights differ).

Amounts are integers of 1/SCALE weighted token, so sums neither round nor overflow (float32 loses single
tokens at 1.7e7, int32 wraps at 2.1e9). A client of weight phi has the virtual counter `raw / phi` and is
lifted to the counter of another client. Between different weights these are fractions, kept exact so that
ties do not depend on rounding. Their denominators divide one product of the weights, so they stay bounded.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from serving.request import ClientId

SCALE = 1 << 20

type Amount = int | Fraction


def units(weighted_tok: float | Fraction) -> int:
    """Ledger units of an amount in weighted tokens, rounded to the nearest."""
    return round(Fraction(weighted_tok) * SCALE)


class Account:
    """One client's sums, in ledger units. Invariant: `raw = lifts + charges - refunds`.

    Attributes:
      num, den: the client's weight as a fraction.
      lifts: credit forgone on return from idle, and adjustments where the weight changed; no service stands
        behind it.
      charges, refunds: work charged, and predicted or unexecuted work refunded.
      turn: number of the admission that last served this client; -1 if never, or just returned from idle.
    """

    __slots__ = ("charges", "client", "den", "lifts", "num", "raw", "refunds", "turn")

    def __init__(self, client: ClientId, weight: Fraction = Fraction(1)):
        if weight <= 0:
            raise ValueError(f"client {client!r} has weight {weight}; a weight must be above 0")
        self.client = client
        self.num, self.den = weight.numerator, weight.denominator
        self.charges = self.refunds = 0
        self.lifts: Amount = 0
        self.raw: Amount = 0
        self.turn = -1

    @property
    def weight(self) -> Fraction:
        return Fraction(self.num, self.den)

    @property
    def counter(self) -> Amount:
        """Service per unit of weight, in ledger units."""
        return self.raw if self.num == self.den else Fraction(self.raw * self.den) / self.num

    @property
    def served(self) -> int:
        return self.charges - self.refunds

    def charge(self, amount: int) -> None:
        self.charges += amount
        self.raw += amount

    def refund(self, amount: int) -> None:
        self.refunds += amount
        self.raw -= amount

    def reweigh(self, weight: Fraction) -> None:
        """Changes the weight; the counter stays, so that the change is no credit and no debt."""
        counter = self.counter
        self.num, self.den = weight.numerator, weight.denominator
        target = counter if self.num == self.den else Fraction(counter * self.num) / self.den
        target = target.numerator if isinstance(target, Fraction) and target.is_integer() else target
        self.lifts += target - self.raw
        self.raw = target

    def lift_to(self, counter: Amount) -> None:
        """Raises the counter to at least `counter`; never lowers it."""
        target = counter if self.num == self.den else Fraction(counter * self.num) / self.den
        lift = target - self.raw
        if lift > 0:
            self.lifts += lift
            self.raw += lift


class Ledger:
    """All accounts by client, and the service of the accounts that were dropped."""

    def __init__(self, weights: dict[ClientId, Fraction] | None = None) -> None:
        self.weights = dict(weights or {})
        self.accounts: dict[ClientId, Account] = {}
        self.dropped_served = 0

    def open(self, client: ClientId) -> Account:
        """Returns the client's account, created at zero if there is none."""
        account = self.accounts.get(client)
        if account is None:
            account = Account(client, self.weights.get(client, Fraction(1)))
            self.accounts[client] = account
        return account

    def drop(self, client: ClientId) -> None:
        self.dropped_served += self.accounts.pop(client).served

    def __iter__(self) -> Iterator[Account]:
        return iter(self.accounts.values())

    def __len__(self) -> int:
        return len(self.accounts)

    def snapshot(self) -> dict[str, Any]:
        return {
            "dropped_served": self.dropped_served,
            "weights": {c: str(w) for c, w in self.weights.items()},
            "accounts": [
                [a.client, str(a.weight), str(a.lifts), a.charges, a.refunds, a.turn]
                for a in self.accounts.values()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.dropped_served = state["dropped_served"]
        self.weights = {c: Fraction(w) for c, w in state["weights"].items()}
        self.accounts = {}
        for client, weight, lifts, charges, refunds, turn in state["accounts"]:
            account = self.accounts[client] = Account(client, Fraction(weight))
            lifted = Fraction(lifts)
            account.lifts = lifted.numerator if lifted.is_integer() else lifted
            account.charges, account.refunds, account.turn = charges, refunds, turn
            account.raw = account.lifts + charges - refunds
