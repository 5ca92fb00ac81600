"""When requests are sent: an open loop's arrival times, which do not wait for answers."""

import math
from collections.abc import Callable

import numpy as np


def gamma_times(n: int, rate_per_s: float, burstiness: float, rng: np.random.Generator) -> list[float]:
    """Arrival times in seconds with gaps from Gamma(burstiness, 1 / (rate * burstiness)).

    Burstiness 1 is a Poisson process, less comes in bursts, more is steadier. The times are stretched so that
    the last is n / rate: a seed changes the pattern and not the load, as in vLLM's client.

    Raises:
      ValueError: rate or burstiness is not above 0.
    """
    if not rate_per_s > 0 or not burstiness > 0:
        raise ValueError(f"rate {rate_per_s} and burstiness {burstiness} must be above 0")
    if math.isinf(rate_per_s):
        return [0.0] * n
    times = np.cumsum(rng.gamma(burstiness, 1 / (rate_per_s * burstiness), size=n))
    return [float(t) for t in times * (n / rate_per_s / times[-1])] if n else []


def ramp_times(
    n: int, kind: str, start_per_s: float, end_per_s: float, burstiness: float, rng: np.random.Generator
) -> list[float]:
    """Arrival times whose rate goes from one value to another over the requests, linearly or exponentially.

    Raises:
      ValueError: a rate is not above 0, or no such kind.
    """
    if kind not in RAMPS:
        raise ValueError(f"a ramp is {' or '.join(RAMPS)}, not {kind!r}")
    if not (0 < start_per_s < math.inf and 0 < end_per_s < math.inf):
        raise ValueError(f"a ramp goes from {start_per_s} to {end_per_s} requests/s; both must be above 0")
    shares = [i / max(1, n - 1) for i in range(n)]
    rates = [RAMPS[kind](start_per_s, end_per_s, share) for share in shares]
    gaps = rng.gamma(burstiness, 1 / burstiness, size=n)
    return [float(t) for t in np.cumsum([gap / rate for gap, rate in zip(gaps, rates)])]


RAMPS: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda start, end, share: start + (end - start) * share,
    "exponential": lambda start, end, share: start * (end / start) ** share,
}
