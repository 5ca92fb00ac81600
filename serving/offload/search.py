"""Searches micro-batch size and number of micro-batches for the most tokens a second.

Sizes are 1 to 4 and then every 32 from 36, as in the artifact. For each size every number of micro-batches
that fits is priced; feasibility is monotone in that number, so the largest is found by doubling and halving.
Ties go to the larger batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.offload.plan import Infeasible, OffloadPlanner, OffloadPolicy

SIZES = (1, 2, 3, 4)
STRIDE = 32
MAX_MICRO_BATCHES = 1 << 16


@dataclass(frozen=True)
class OffloadPlan:
    """The best policy found.

    Attributes:
      policy, tokens_per_s: the policy and its predicted decoding rate.
      tried: number of policies priced.
    """

    policy: OffloadPolicy
    tokens_per_s: float
    tried: int


def search(
    planner: OffloadPlanner,
    *,
    device_attention: bool = False,
    micro_batch: int | None = None,
    max_micro_batches: int = MAX_MICRO_BATCHES,
    max_batch: int | None = None,
    first_peak: bool = True,
) -> OffloadPlan:
    """The best policy for the planner's model, machine and workload.

    Args:
      micro_batch: search only this size.
      max_micro_batches: 1 gives ZeRO-Inference's shape, one micro-batch.
      max_batch: rows of a pass at most, for example the number of requests there are.
      first_peak: for each size stop at the first number that is slower than the one before, as the artifact
        does; otherwise price every number that fits.

    Raises:
      Infeasible: not even one row fits.
    """
    best: tuple[float, OffloadPolicy] | None = None
    tried = 0
    for size in _sizes(micro_batch, max_batch):
        limit = max_micro_batches if max_batch is None else min(max_micro_batches, max_batch // size)
        largest = _largest_number(planner, size, device_attention, limit)
        if largest == 0:
            break
        before = 0.0
        for number in range(1, largest + 1):
            policy = planner.fit(size, number, device_attention=device_attention)
            rate = planner.tokens_per_s(policy)
            tried += 1
            if first_peak and rate < before:
                break
            before = rate
            if best is None or rate >= best[0]:
                best = rate, policy
    if best is None:
        planner.fit(micro_batch or 1, 1, device_attention=device_attention)  # says what is short
        raise Infeasible(f"no micro-batch fits a batch of {max_batch}")
    return OffloadPlan(best[1], best[0], tried)


def _sizes(micro_batch: int | None, max_batch: int | None) -> Iterator[int]:
    if micro_batch is not None:
        yield micro_batch
        return
    size = 0
    while True:
        size = size + 1 if size < SIZES[-1] else size + STRIDE
        if max_batch is not None and size > max_batch:
            return
        yield size


def _largest_number(planner: OffloadPlanner, size: int, device_attention: bool, limit: int) -> int:
    """The most micro-batches of `size` rows that fit, at most `limit`; 0 if none does."""

    def fits(number: int) -> bool:
        try:
            planner.fit(size, number, device_attention=device_attention)
        except Infeasible:
            return False
        return True

    if limit < 1 or not fits(1):
        return 0
    low = 1
    while 2 * low <= limit and fits(2 * low):
        low *= 2
    high = min(2 * low, limit + 1)  # does not fit, or is not allowed
    if low * 2 > limit and fits(limit):
        return limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
