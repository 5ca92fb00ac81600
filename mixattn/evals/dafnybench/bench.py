"""Processor time of the strict check without the verifier, by length of program."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from mixattn.evals.dafny import strict
from mixattn.evals.dafny.reader import read
from mixattn.evals.dafny.strip import strip
from mixattn.evals.dafnybench.tasks import own


def timings(repeats: int = 21) -> Iterator[dict[str, Any]]:
    """A row for each length; a program of many lines is our programs one after another, each in a module."""
    programs = [task.original for task in own()]
    for n in (1, 4, 10, 20, len(programs)):
        original = "".join(f"module M{i} {{\n{program}}}\n" for i, program in enumerate(programs[:n]))
        stripped = strip(original)
        yield {
            "lines": original.count("\n"),
            "tokens": len(read(original).tokens),
            "first_check_cpu_ms": _ms(lambda s=stripped, o=original: _first(o, s), repeats),
            "next_check_cpu_ms": _ms(lambda s=stripped, o=original: strict.cheats(o, s, o), repeats),
        }


def _first(original: str, stripped: str) -> None:
    """A task's first solution: the task itself has to be read too."""
    strict.forget()
    strict.cheats(original, stripped, original)


def _ms(work: Any, repeats: int) -> float:
    spent = []
    for _ in range(repeats):
        start_s = time.process_time()
        work()
        spent.append(time.process_time() - start_s)
    return round(1e3 * median(spent), 2)
