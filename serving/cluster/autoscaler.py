"""When a cluster should have one worker more, or one less. Pure: the time is an argument."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScalingRule:
    """Bounds and times of automatic scaling.

    Attributes:
      min_workers, max_workers: bounds; equal ones switch it off.
      cool_down_s: after a change, until the next.
      wait_s: how long outputs must have waited at the ingress without a gap before a worker is added.
      idle_s: how long the live outputs must have fitted on one worker less before one is let go.
    """

    min_workers: int
    max_workers: int
    cool_down_s: float = 30.0
    wait_s: float = 3.0
    idle_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_workers <= self.max_workers:
            raise ValueError(
                f"workers may be {self.min_workers} to {self.max_workers}: at least 1, then more"
            )


class Autoscaler:
    """Decides from the queue and the room of the workers."""

    def __init__(self, rule: ScalingRule) -> None:
        self.rule = rule
        self._waits_since_s: float | None = None
        self._spare_since_s: float | None = None
        self._changed_s: float | None = None

    def decide(self, now_s: float, *, workers: int, waiting: int, live: int, room: int) -> int:
        """1 to start a worker, -1 to let one go, else 0.

        Args:
          workers: that run or start, without those that leave.
          waiting: outputs without a worker; live: outputs with one.
          room: live outputs that one worker may have.
        """
        rule = self.rule
        self._waits_since_s = _since(self._waits_since_s, waiting > 0, now_s)
        spare = waiting == 0 and live <= (workers - 1) * room / 2
        self._spare_since_s = _since(self._spare_since_s, spare, now_s)
        if self._changed_s is not None and now_s - self._changed_s < rule.cool_down_s:
            return 0
        if workers < rule.max_workers and _lasts(self._waits_since_s, rule.wait_s, now_s):
            return self._change(1, now_s)
        if workers > rule.min_workers and _lasts(self._spare_since_s, rule.idle_s, now_s):
            return self._change(-1, now_s)
        return 0

    def _change(self, by: int, now_s: float) -> int:
        self._changed_s = now_s
        self._waits_since_s = self._spare_since_s = None
        return by


def _since(since_s: float | None, holds: bool, now_s: float) -> float | None:
    return None if not holds else now_s if since_s is None else since_s


def _lasts(since_s: float | None, limit_s: float, now_s: float) -> bool:
    return since_s is not None and now_s - since_s >= limit_s
