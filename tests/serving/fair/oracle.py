"""Recomputes service, waiting intervals and gaps from the event log by brute force.

Simple rather than fast: the whole history is kept, and every interval is searched for gaps.
"""

from collections import defaultdict


class Oracle:
    def __init__(self, log, prompt=1, output=2, cached=1):
        self.prompt, self.output, self.cached = prompt, output, cached
        self.served = defaultdict(int)
        self.history = []  # (who waits, service of all) after every event, and before an admission is billed
        self.client, self.total, self.counted, self.executed = {}, {}, {}, {}
        self.waiting = {}
        for event in log:
            getattr(self, "_" + event["event"])(event)
            self._remember()

    def _remember(self):
        self.history.append((frozenset(self.waiting.values()), dict(self.served)))

    def _arrive(self, event):
        self.client[event["id"]] = self.waiting[event["id"]] = event["client"]
        self.counted[event["id"]] = self.executed[event["id"]] = (0, 0)
        self.served[event["client"]] += 0

    def _admit(self, event):
        id = event["id"]
        del self.waiting[id]
        self._remember()
        total = self.total.setdefault(id, event["extend"] + event["hit"])
        extend, hit = self.counted[id]
        fresh = min(total - extend - hit, event["extend"])
        self._recount(id, extend + fresh, total - extend - fresh)

    def _recount(self, id, extend, hit):
        for which, price in ((0, self.prompt), (1, self.cached)):
            self.served[self.client[id]] += price * ((extend, hit)[which] - self.counted[id][which])
        self.counted[id] = (extend, hit)

    def _tokens(self, event):
        for client, count in event["counts"].items():
            self.served[client] += self.output * count

    def _first_token(self, event):
        pass

    def _finish(self, event):
        pass

    def _cancel(self, event):
        self._stop(event)
        self.waiting.pop(event["id"], None)

    def _preempt(self, event):
        self._stop(event)
        self.waiting[event["id"]] = event["client"]

    def _stop(self, event):
        id = event["id"]
        done = max(sum(self.executed[id]), event.get("prefilled", sum(self.counted[id])))
        hit = min(self.counted[id][1], done)
        self._recount(id, min(self.counted[id][0], done - hit), hit)
        self.executed[id] = self.counted[id]

    def drift(self, f, g, both=True):
        """The largest growth of W_g - W_f within an interval in which f waits (and g too, if `both`)."""
        worst, least = 0, None
        for waiting, served in self.history:
            if f in waiting and (g in waiting or not both):
                ahead = served.get(g, 0) - served.get(f, 0)
                least = ahead if least is None else min(least, ahead)
                worst = max(worst, ahead - least)
            else:
                least = None
        return worst

    def gap(self):
        clients = sorted(self.served)
        return max((self.drift(f, g) for f in clients for g in clients if f != g), default=0)
