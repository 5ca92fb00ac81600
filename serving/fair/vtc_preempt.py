"""Preemptive VTC: a running request gives way if its client is too far ahead of one that waits.

The lower bound of the VTC paper (Theorem 4.8) is for schedulers that let every admitted request finish. Where
the head of the line does not fit, this policy names a victim: the request admitted last of the running client
with the largest counter, if that is more than `threshold_tok` above the smallest counter of a waiting client.
The victim waits again and its work is done anew without being charged. 2U still bounds the gap: a counter
never grows more than U after an admission. The usual gap falls towards the threshold, and throughput with it.

Source: VTC (arXiv 2401.00588), Remark 4.7 and App. C.3, which leave the rule open: a re-telling.
"""

from fractions import Fraction
from typing import Any

from serving.fair.ledger import units
from serving.fair.vtc import Vtc
from serving.request import RequestId


class VtcPreempt(Vtc):
    """VTC that names requests to preempt; see `Policy.victim`."""

    def __init__(self, *, threshold_tok: float | Fraction = 2000, **options: Any) -> None:
        """`threshold_tok`: difference of counters above which a request is preempted, in weighted tokens."""
        super().__init__(**options)
        if not threshold_tok > 0:
            raise ValueError(f"threshold_tok is {threshold_tok}; it must be above 0")
        self.threshold = units(threshold_tok)

    def victim(self, now_s: float) -> RequestId | None:
        """The running request to preempt for the head of the line, or None."""
        least = self._by_counter.top()
        running = [c for c in self.charge_of.values() if c.request.id not in self.backlog]
        if least is None or not running:
            return None
        floor = self.ledger.accounts[least].counter
        most = max(running, key=lambda c: (c.account.counter, c.admission))
        return most.request.id if most.account.counter - floor > self.threshold else None
