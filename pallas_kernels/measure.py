"""The benchmark harness: callables timed in interleaved rounds, so that a change of the machine's speed
affects all of them alike. `pallas_kernels.results` writes the rows of figures.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

type Statistic = Callable[[Sequence[float]], float]

STATISTICS: dict[str, Statistic] = {"median": statistics.median, "min": min}


def interleave[T](
    sides: Mapping[str, Callable[[], T]], rounds: int, *, warmup: int = 1
) -> dict[str, list[T]]:
    """Calls every side once per round, in order.

    Args:
      sides: name -> callable; one that returns seconds is made by `timed`.
      warmup: rounds before the measured ones, whose results are dropped: they compile and fill caches.

    Returns:
      What each side returned, one entry per measured round.
    """
    taken: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(-warmup, rounds):
        for name, call in sides.items():
            result = call()
            if number >= 0:
                taken[name].append(result)
    return taken


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """A callable that returns the seconds of one `call`, until the arrays of its result are ready."""

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    return seconds


def milliseconds(seconds: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Columns `median_ms` and `min_ms`."""
    return {f"{name}_ms": round(1e3 * of(seconds), digits) for name, of in STATISTICS.items()}
