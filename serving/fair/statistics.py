"""Percentiles, Jain's index, and means with confidence intervals."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Two-sided 95 % quantiles of Student's t for 1, 2, .. degrees of freedom; beyond them the normal's 1.96.
STUDENT_95: tuple[float, ...] = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
STUDENT_95 += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval over so many runs; the bounds are nan for one run."""

    mean: float
    low: float
    high: float
    runs: int


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value such that at least `percent` % of all are not above it; nan if there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index: 1 if all n values are equal, 1/n if all but one are zero."""
    x = list(values)
    square = sum(v * v for v in x)
    return sum(x) ** 2 / (len(x) * square) if square else 1.0


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval by Student's t; values that are nan are left out."""
    known = [v for v in values if not math.isnan(v)]
    n = len(known)
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(known) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (n - 1))
    half = (STUDENT_95[n - 2] if n - 2 < len(STUDENT_95) else 1.96) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)
