"""Python's collector of circles, for processes with many live objects and hardly any circles."""

import gc

# Objects made before a look at the youngest, and looks before one at the older; Python's are 700, 10, 10.
_THRESHOLDS = 100_000, 20, 20


def collect_rarely() -> None:
    """Lets the collector look seldom: with a million live requests and tree nodes it would take a fifth to a
    third of all time to find nothing."""
    gc.set_threshold(*_THRESHOLDS)
