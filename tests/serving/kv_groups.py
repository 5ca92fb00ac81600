"""Page groups for tests, by window."""

from serving.kvcache.groups import FullGroup, KVGroup, SlidingGroup


def group(window: int | None, num_pages: int) -> KVGroup:
    """A full group where `window` is None, else a sliding one."""
    return FullGroup(num_pages) if window is None else SlidingGroup(window, num_pages)
