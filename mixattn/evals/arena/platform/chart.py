"""Ratings over days as lines of an SVG picture, without styles of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 12, 34
MAX_LINES = 12
GAP = 20  # pixels between two names


@dataclass(frozen=True)
class Line:
    """A model's line: points "x,y x,y ..." in pixels, and the place of its name at the right end."""

    model: str
    points: str
    end_x: float
    end_y: float
    label_y: float


@dataclass(frozen=True)
class Chart:
    """The lines of the best models, and ticks (y in pixels, rating) and (x in pixels, day)."""

    lines: list[Line]
    ratings: list[tuple[float, int]]
    days: list[tuple[float, float]]


def lines(days: Sequence[dict[str, Any]]) -> Chart | None:
    """The chart of `Leaderboards.history`; None while no day has a ranking."""
    ranked = [day for day in days if day["models"]]
    if not ranked:
        return None
    best = [m["model"] for m in ranked[-1]["models"][:MAX_LINES]]
    rating = [{m["model"]: m["rating"] for m in day["models"]} for day in ranked]
    values = [each[name] for each in rating for name in best if name in each]
    low, high = min(values), max(values)
    low, high = (low - 10, high + 10) if high - low < 20 else (low, high)
    first, last = ranked[0]["day"], ranked[-1]["day"]

    def x(day: float) -> float:
        share = (day - first) / (last - first) if last > first else 1.0
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    found, label_y = [], -float(GAP)
    for name in best:
        points = [(x(d["day"]), y(each[name])) for d, each in zip(ranked, rating) if name in each]
        label_y = max(points[-1][1], label_y + GAP)
        found.append(Line(name, " ".join(f"{a},{b}" for a, b in points), *points[-1], label_y))
    ticks = [(y(value), round(value)) for value in (low, (low + high) / 2, high)]
    return Chart(found, ticks, [(x(day), day) for day in dict.fromkeys((first, last))])
