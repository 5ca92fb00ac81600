"""Who may see whom: the one place that decides what a window is.

A window of `W` counts the query itself, so `W = 1` attends to one key. Other libraries' conventions (keys
strictly older than `W`, pairs of left and right) are converted where they meet us, never here.
"""

from typing import Any


def visible(age: Any, window: int | None) -> Any:
    """True where a key is neither in the query's future nor out of its window.

    Args:
      age: query position minus key position, in tokens. Numpy or JAX array, or an int.
      window: keys in view, the query's own included; None for no limit.
    Returns:
      `0 <= age < window`, with the shape of `age`.
    """
    seen = age >= 0
    return seen if window is None else seen & (age < window)


def oldest(position: Any, window: int | None) -> Any:
    """The oldest position in view of a query at `position`; negative where a window reaches before 0."""
    return 0 * position if window is None else position - window + 1


def first_seen(position: int, window: int | None) -> int:
    """The first position, from 0 up, that a query at `position` or any later one can see."""
    return max(0, int(oldest(position, window)))


def unseen_from(key: int, window: int) -> int:
    """The first query position that no longer sees the key at position `key`."""
    return key + window


def positions_seen(queries: int, window: int) -> int:
    """How many positions `queries` consecutive queries see together."""
    return window - 1 + queries
