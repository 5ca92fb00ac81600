"""How fast each worker is, from its own counters, for a router that shares work by speed. Pure: no clock.

A worker's speed is the tokens that it computed and produced per busy second, and only while at least half of
its slots were in use: with few outputs at once a fast worker produces few tokens per second, too. Capacities
are relative to the mean speed of all workers that have one. One is told only when it differs from the last
by more than `hysteresis`, so that noise changes nothing.
"""

from dataclasses import dataclass

from serving.engine.stats import EngineStats

MIN_BUSY_S = 1.0  # of work between two readings
MIN_READINGS = 5  # before a speed counts


@dataclass(slots=True)
class Speedometer:
    """One worker's last counters, and its smoothed speed in tokens per busy second."""

    tok: int = 0
    busy_s: float = 0.0
    speed: float | None = None
    readings: int = 0


class CapacityMeter:
    """See the module.

    Args:
      smoothing: weight of a new reading; hysteresis: relative change that counts.
    """

    def __init__(self, *, smoothing: float = 0.2, hysteresis: float = 0.25) -> None:
        if not 0 < smoothing <= 1 or hysteresis < 0:
            raise ValueError(f"smoothing is {smoothing}, from 0 to 1; hysteresis {hysteresis}, at least 0")
        self._smoothing, self._hysteresis = smoothing, hysteresis
        self._meters: dict[int, Speedometer] = {}
        self.capacity_of: dict[int, float] = {}

    def began(self, place: int) -> None:
        """A worker started anew; its counters begin at 0, and it may be another machine."""
        self._meters[place] = Speedometer()
        self.capacity_of[place] = 1.0

    def gone(self, place: int) -> None:
        self._meters.pop(place, None)
        self.capacity_of.pop(place, None)

    def speed(self, place: int) -> float | None:
        """Tokens per busy second; None before its first reading."""
        meter = self._meters.get(place)
        return None if meter is None else meter.speed

    def take(self, place: int, stats: EngineStats) -> dict[int, float]:
        """A worker's counters; returns the capacities that change."""
        meter = self._meters[place]
        tok = stats.output_tok + stats.prompt_tok - stats.hit_tok
        busy_s = stats.host_s + stats.device_s
        took_s = busy_s - meter.busy_s
        crowded = 2 * stats.running >= stats.slots
        if took_s < MIN_BUSY_S and crowded:
            return {}
        if crowded and tok > meter.tok:
            speed, old = (tok - meter.tok) / took_s, meter.speed
            meter.readings += 1
            share = max(self._smoothing, 1 / meter.readings)  # a plain mean of the first ones
            meter.speed = speed if old is None else old + share * (speed - old)
        meter.tok, meter.busy_s = tok, busy_s
        return self._changes()

    def _changes(self) -> dict[int, float]:
        speeds = {
            place: m.speed
            for place, m in self._meters.items()
            if m.speed is not None and m.readings >= MIN_READINGS
        }
        if len(speeds) < 2:
            return {}
        mean = sum(speeds.values()) / len(speeds)
        changed = {}
        for place, speed in speeds.items():
            capacity = round(speed / mean, 2) or 0.01
            if abs(capacity / self.capacity_of[place] - 1) > self._hysteresis:
                self.capacity_of[place] = changed[place] = capacity
        return changed
