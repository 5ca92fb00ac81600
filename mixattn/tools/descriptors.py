"""Open files of this process: many systems allow 1024 at first and more to those who ask."""

import resource


def raise_limit(wanted: int) -> int:
    """Asks for room for `wanted` open files; how many may be open now, perhaps fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return wanted if soft == resource.RLIM_INFINITY else soft
