"""Verifies many programs at once; a time-out or crash is tried once more, alone, before it counts."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from mixattn.evals.dafny.protocol import UNSURE, Verification, Verify

type Named = tuple[str, str]  # name, program


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def verify_all(
    programs: Iterable[Named], verify: Verify, workers: int = 0
) -> Iterator[tuple[str, Verification]]:
    """Yields (name, verification) as programs finish, time-outs and crashes at the end.

    Args:
      workers: programs at once; 0: one for each core.

    Raises:
      VerifierGone: what finished before was yielded.
    """
    late: list[Named] = []
    for (name, program), found in _hurried(iter(programs), verify, workers or cores()):
        if found.verdict in UNSURE and found.tries < 2:
            late.append((name, program))
        else:
            yield name, found
    for name, program in late:
        yield name, verify(program, tries=2)


def _hurried(programs: Iterator[Named], verify: Verify, workers: int) -> Iterator[tuple[Named, Verification]]:
    """First tries; at most two programs a worker are held at once."""
    with ThreadPoolExecutor(workers, "dafny") as threads:
        running: dict[Future[Verification], Named] = {}
        try:
            while True:
                for named in islice(programs, 2 * workers - len(running)):
                    running[threads.submit(verify, named[1])] = named
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=_raised):  # what was done is yielded before an error ends it
                    yield running.pop(future), future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _raised(future: Future[Verification]) -> bool:
    return future.exception() is not None
