"""Damping of optimistic admission: a limit on running requests that is learned from preemptions.

Optimistic admission starts requests whose growth may not fit. Where outputs are long, every request that is
preempted is admitted again at once and preempts another. The window limits how many requests run: a
preemption sets it to a sixteenth less than what runs, every request that finishes opens it by 1 / window
(additive increase, multiplicative decrease, as in TCP). Memory is not looked at, so the engine and the
simulator share it.
"""

import math

BACK_OFF = 15 / 16


class AdmissionWindow:
    """Whether one more request may run.

    Attributes:
      width: requests that may run at once; infinite until the first preemption.
    """

    def __init__(self) -> None:
        self.width = math.inf

    def admits(self, running: int) -> bool:
        """Whether a request may start beside so many; the first always may."""
        return running < max(1.0, self.width)

    def shrink(self, running: int) -> None:
        """A request was preempted; so many still run."""
        self.width = max(1.0, BACK_OFF * min(self.width, running + 1))

    def widen(self) -> None:
        """A request finished."""
        self.width += 1 / self.width
