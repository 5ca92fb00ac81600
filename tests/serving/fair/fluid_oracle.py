"""Lags, pauses and weighted gaps recomputed from an event log in fractions, by searching every interval.

Weighted fluid sharing is applied event by event: the service of an event is split among the clients that have
a live request then, in proportion to their weights.
"""

from collections import Counter
from fractions import Fraction

from tests.serving.fair.oracle import Oracle


class FluidOracle(Oracle):
    """`rows`: (time, who waits, entitlement of all, service of all) after every change."""

    def __init__(self, log, weights=None, **prices):
        self.weights = {client: Fraction(weight) for client, weight in (weights or {}).items()}
        self.live, self.entitled, self.rows = Counter(), Counter(), []
        self.admissions, self.now = [], 0
        self.log = list(log)
        super().__init__(self._dated(), **prices)

    def _dated(self):
        for event in self.log:
            self.now, self.event = event["t"], event
            before = Counter(self.served)
            if event["event"] == "arrive":
                self.live[event["client"]] += 1
            if event["event"] == "admit":
                self.admissions.append((len(self.rows), event["t"], event["client"]))
            yield event
            given = sum(self.served.values()) - sum(before.values())
            shares = {client: self.weight(client) for client, count in self.live.items() if count}
            for client, weight in shares.items():
                self.entitled[client] += Fraction(given) * weight / sum(shares.values())
            if event["event"] in ("finish", "cancel"):
                self.live[self.client[event["id"]]] -= 1
            self.rows[-1] = (*self.rows[-1][:2], dict(self.entitled), self.rows[-1][3])

    def weight(self, client):
        return self.weights.get(client, Fraction(1))

    def _remember(self):
        super()._remember()
        self.rows.append((self.now, frozenset(self.waiting.values()), dict(self.entitled), dict(self.served)))

    def lag(self, client):
        """The largest entitlement less service of any interval in which the client waits, row by row."""
        worst, least = Fraction(0), None
        for _, waiting, entitled, served in self.rows:
            ahead = Fraction(entitled.get(client, 0)) - Fraction(served.get(client, 0))
            if client not in waiting:
                # The event that ends its wait happens at the end of the interval: only its own admission
                # (billed in a row of its own) and cancels come here, and neither entitles it to more.
                least = None
                continue
            least = ahead if least is None else min(least, ahead)
            worst = max(worst, ahead - least)
        return worst

    def weighted_gap(self):
        clients = sorted({c for _, _, _, served in self.rows for c in served})
        return max((self._drift(f, g) for f in clients for g in clients if f != g), default=Fraction(0))

    def _drift(self, f, g):
        worst, least = Fraction(0), None
        for _, waiting, _, served in self.rows:
            if f in waiting and g in waiting:
                ahead = served.get(g, 0) / self.weight(g) - served.get(f, 0) / self.weight(f)
                least = ahead if least is None else min(least, ahead)
                worst = max(worst, ahead - least)
            else:
                least = None
        return worst

    def pause(self, client):
        """The longest time between two moments at which it joins, is admitted, leaves, or the log ends."""
        worst, since = 0.0, None
        admitted = {(row, at) for row, at, who in self.admissions if who == client}
        for row, (now, waiting, _, _) in enumerate(self.rows):
            if since is not None and ((row, now) in admitted or client not in waiting):
                worst, since = max(worst, now - since), now
            if client not in waiting:
                since = None
            elif since is None:
                since = now
        return worst if since is None else max(worst, self.rows[-1][0] - since)
