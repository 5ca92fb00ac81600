"""How fast each worker is, from its own counters, for a router that shares work by speed. Pure: no clock.

Tokens per busy second alone say little: a fast worker that decodes one output at a time produces few of them.
So speed is how long a worker's work should have taken, over how long it took. Work is counted in decode
steps, rows of decode steps and computed prompt tokens; what each costs is fitted to the readings of all
workers together, each at the speed that it has so far. Hence a worker needs no load to be measured, only
some work; an idle one keeps the capacity it has; and where the readings cannot tell a slow worker from one
that has other work than the rest, capacities stay as they are.

Capacities are relative to the mean speed of all workers that have one. One is told only when it differs from
the last by more than `hysteresis`, so that noise changes nothing.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from serving.engine.stats import EngineStats

MIN_BUSY_S = 0.5  # of work between two readings
MIN_READINGS = 5  # before a speed counts
ROUNDS = 4  # of prices and speeds in turns, each time there is news
KINDS = 3  # of work


class Speedometer:
    """One worker's readings, the older the less they count.

    Attributes:
      work_K: by kind; busy_s: what it took; tok: tokens computed and produced.
      gram_KK, moment_K: sums of products of work with work, and with seconds.
      readings: how many there were.
      speed: relative to the other workers'.
    """

    def __init__(self) -> None:
        self.work_K, self.busy_s, self.tok = np.zeros(KINDS), 0.0, 0.0
        self.gram_KK, self.moment_K = np.zeros((KINDS, KINDS)), np.zeros(KINDS)
        self.readings = 0
        self.speed = 1.0
        self._last_K, self._last_s, self._last_tok = np.zeros(KINDS), 0.0, 0

    def read(self, stats: EngineStats, smoothing: float) -> bool:
        """Takes the counters; whether there was enough work for a reading."""
        busy_s, extend_tok = stats.host_s + stats.device_s, stats.prompt_tok - stats.hit_tok
        took_s = busy_s - self._last_s
        if took_s < MIN_BUSY_S:
            return False
        now_K = np.array([stats.decode_steps, stats.decode_rows, extend_tok], float)
        work_K, tok = now_K - self._last_K, stats.output_tok + extend_tok - self._last_tok
        self._last_K, self._last_s, self._last_tok = now_K, busy_s, stats.output_tok + extend_tok
        if not work_K.any():
            return False
        kept = 1 - smoothing
        self.work_K = kept * self.work_K + work_K
        self.busy_s = kept * self.busy_s + took_s
        self.tok = kept * self.tok + tok
        self.gram_KK = kept * self.gram_KK + np.outer(work_K, work_K)
        self.moment_K = kept * self.moment_K + work_K * took_s
        self.readings += 1
        return True


class CapacityMeter:
    """See the module.

    Args:
      smoothing: weight of a new reading; hysteresis: relative change that counts.

    Attributes:
      capacity_of: by place, as last told; 1 where nothing is known.
    """

    def __init__(self, *, smoothing: float = 0.2, hysteresis: float = 0.25) -> None:
        if not 0 < smoothing <= 1 or hysteresis < 0:
            raise ValueError(f"smoothing is {smoothing}, from 0 to 1; hysteresis {hysteresis}, at least 0")
        self._smoothing, self._hysteresis = smoothing, hysteresis
        self._meters: dict[int, Speedometer] = {}
        self._news = 0  # readings since speeds were last computed
        self.capacity_of: dict[int, float] = {}

    def began(self, place: int) -> None:
        """A worker started anew; its counters begin at 0, and it may be another machine."""
        self._meters[place] = Speedometer()
        self.capacity_of[place] = 1.0

    def gone(self, place: int) -> None:
        self._meters.pop(place, None)
        self.capacity_of.pop(place, None)

    def tok_per_busy_s(self, place: int) -> float | None:
        """Of recent readings; None before the first."""
        meter = self._meters.get(place)
        return meter.tok / meter.busy_s if meter is not None and meter.busy_s else None

    def take(self, place: int, stats: EngineStats) -> dict[int, float]:
        """A worker's counters; returns the capacities that change."""
        self._news += self._meters[place].read(stats, self._smoothing)
        known = {p: m for p, m in self._meters.items() if m.readings >= MIN_READINGS}
        if len(known) < 2 or self._news <= len(known) // 8:  # with many workers not at each reading
            return {}
        self._news = 0
        _compare(list(known.values()))
        changed = {}
        for known_place, meter in known.items():
            capacity = round(meter.speed, 2) or 0.01
            if abs(capacity / self.capacity_of[known_place] - 1) > self._hysteresis:
                self.capacity_of[known_place] = changed[known_place] = capacity
        return changed


def _compare(meters: Sequence[Speedometer]) -> None:
    """Sets the speeds of all, with a mean of 1: prices of work from speeds, speeds from prices, in turns."""
    gram_KK = sum(m.gram_KK for m in meters)
    work_WK, busy_W = np.stack([m.work_K for m in meters]), np.array([m.busy_s for m in meters])
    moment_WK, speed_W = np.stack([m.moment_K for m in meters]), np.array([m.speed for m in meters])
    for _ in range(ROUNDS):
        price_K = _prices(np.asarray(gram_KK), speed_W @ moment_WK)
        speed_W = work_WK @ price_K / busy_W
        speed_W /= speed_W.mean()
    for meter, speed in zip(meters, speed_W):
        meter.speed = float(speed)


def _prices(gram_KK: np.ndarray, moment_K: np.ndarray) -> np.ndarray:
    """Seconds of each kind of work by least squares, none below 0."""
    scale_K = np.sqrt(gram_KK.diagonal())
    used = [k for k in range(KINDS) if scale_K[k] > 0]
    scaled_KK = gram_KK / np.outer(np.where(scale_K, scale_K, 1), np.where(scale_K, scale_K, 1))
    scaled_K = moment_K / np.where(scale_K, scale_K, 1)
    best_K, least = np.zeros(KINDS), 0.0
    for size in range(len(used), 0, -1):
        for kinds in combinations(used, size):
            part = list(kinds)
            ridge_KK = scaled_KK[np.ix_(part, part)] + 1e-6 * np.eye(size)  # kinds that always come together
            found_K = np.linalg.solve(ridge_KK, scaled_K[part])
            loss = float(found_K @ ridge_KK @ found_K - 2 * found_K @ scaled_K[part])
            if found_K.min() >= 0 and loss < least:
                best_K, least = np.zeros(KINDS), loss
                best_K[part] = found_K / scale_K[part]
        if least < 0 and size == len(used):
            break  # all kinds have a price
    return best_K
