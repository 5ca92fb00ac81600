"""How much the pool adds to a bare loop over the verifier: both in turn, with as many programs at once."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from mixattn.evals.dafny.pool import verify_all
from mixattn.evals.dafny.verifier import Dafny
from mixattn.evals.dafnybench.checking import Task


def timings(tasks: list[Task], verify: Dafny, workers: int, rounds: int = 3) -> Iterator[dict[str, Any]]:
    """A row for each number of workers; nothing is remembered, every round starts every program anew.

    Columns: wall seconds of the median round either way, their ratio, and programs a second beside the floor,
    which is the workers over the processor seconds that a program takes.
    """
    for n in sorted({1, workers}):
        bare: list[float] = []
        pooled: list[float] = []
        cpu: list[float] = []
        for _ in range(rounds):
            bare.append(_wall_s(partial(_bare_loop, tasks, verify, n)))
            found: list[float] = []
            pooled.append(_wall_s(partial(_pool, tasks, verify, n, found)))
            cpu.append(sum(found) / len(tasks))
        rate, cpu_s = len(tasks) / median(pooled), median(cpu)
        yield {
            "workers": n,
            "programs": len(tasks),
            "rounds": rounds,
            "bare_loop_s": round(median(bare), 2),
            "pool_s": round(median(pooled), 2),
            "pool_over_bare_loop": round(median(p / b for p, b in zip(pooled, bare)), 3),
            "cpu_s_a_program": round(cpu_s, 2),
            "programs_a_second": round(rate, 3),
            "floor_programs_a_second": round(n / cpu_s, 3),
        }


def _pool(tasks: list[Task], verify: Dafny, workers: int, cpu_s: list[float]) -> None:
    for _, found in verify_all([(task.name, task.original) for task in tasks], verify, workers):
        cpu_s.append(found.cpu_seconds)


def _bare_loop(tasks: list[Task], verify: Dafny, workers: int) -> None:
    """What `xargs -P` would do: the same command line, without limits, temporary folders or a reader."""
    with tempfile.TemporaryDirectory(prefix="dafny-") as folder, ThreadPoolExecutor(workers) as threads:
        paths = [Path(folder) / f"{task.name}.dfy" for task in tasks]
        for path, task in zip(paths, tasks):
            path.write_text(task.original, encoding="utf-8")
        command = [word for word in verify.command()[:-1] if not word.startswith("/xml:")]

        def run(path: Path) -> None:
            subprocess.run([*command, str(path)], stdin=subprocess.DEVNULL, capture_output=True, check=False)

        list(threads.map(run, paths))


def _wall_s(work: Callable[[], None]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s
