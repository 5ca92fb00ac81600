"""Sweeps: many small runs of one config, in worker processes of one core each.

A run is a variant and a seed. Its result is a JSON file in the workdir, and a run that has its file is not
repeated, so an interrupted sweep resumes.
"""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from absl import flags, logging

from mixattn.tools import cli, files
from pallas_kernels import results
from train import malloc_tuning, recipe

type SweepTask = tuple[str, int]  # variant and seed
# Runs one task and returns its row; it is pickled when there are several workers.
type RunTask = Callable[[str, int], dict[str, Any]]


def sweep(
    config: Any,
    tasks: Sequence[SweepTask],
    run: RunTask,
    workdir: Path,
    *,
    workers: int = 1,
    free: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Runs the unfinished tasks; returns the rows of all finished runs of the workdir, in task order.

    Args:
      config: dataclass that decides the results; a workdir belongs to one config.
      run: called with (variant, seed).
      workers: number of processes, each pinned to one core; 1 runs in this process on all its cores.
      free: fields of `config` that may differ between calls, because they only select the tasks.

    Raises:
      ValueError: the workdir holds runs of another config, or there are fewer cores than workers.
    """
    _check_config(config, workdir, free)
    unfinished = [task for task in tasks if not _path(workdir, task).exists()]
    with _completed(functools.partial(_run_task, run, workdir), unfinished, workers) as finished:
        for number, (variant, seed) in enumerate(finished, start=1):
            print(f"{variant} seed {seed} is finished, {number} of {len(unfinished)}", flush=True)
    return _read_rows(workdir, [variant for variant, _ in tasks])


def write_table(path: Path, rows: list[dict[str, Any]], *, config: Any, **facts: Any) -> None:
    """Writes one row per run. What all runs share of device, versions and commit goes into the header.

    Raises:
      ValueError: there is no row.
    """
    if not rows:
        raise ValueError(f"no run is finished; there is nothing to write to {path}")
    shared = {
        key: rows[0][key]
        for key in results.SURROUNDINGS
        if all(row.get(key) == rows[0].get(key) for row in rows)
    }
    columns = [{k: v for k, v in row.items() if k not in shared} for row in rows]
    rounded = [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in columns]
    results.write_csv(path, rounded, **shared, **facts, config=json.dumps(dataclasses.asdict(config)))


def command(kind: str, compare: Callable[[Any, Path, Path, int], None], workdir: str) -> None:
    """Runs the command line of a sweep: --config, --workdir, --results, --workers.

    Args:
      kind: name of the dataclass that a config file of this command returns.
      compare: called with (config, workdir, folder of results, workers).
      workdir: default of --workdir.
    """

    def main() -> None:
        malloc_tuning.keep_freed_memory()
        config = cli.config()
        if type(config).__name__ != kind:
            raise ValueError(f"--config holds {type(config).__name__}, this command reads {kind}")
        compare(config, Path(flags.FLAGS.workdir), Path(flags.FLAGS.results), flags.FLAGS.workers)

    malloc_tuning.restart_with_huge_pages()
    logging.set_verbosity(logging.FATAL)
    cli.define_config()
    flags.DEFINE_string("workdir", workdir, "Folder for the runs; finished ones are kept.")
    flags.DEFINE_string("results", "results", "Folder for the table and the plot.")
    flags.DEFINE_integer(
        "workers", 1, "Number of parallel runs, each in a process on one core.", lower_bound=1
    )
    cli.run(main)


def _check_config(config: Any, workdir: Path, free: Sequence[str]) -> None:
    """Records the config of a new workdir, or checks it against the recorded one.

    Raises:
      ValueError: the workdir holds runs of another config.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    fixed = {name: value for name, value in recipe.as_json(config).items() if name not in free}
    if path.exists():
        before = {k: v for k, v in recipe.upgrade(files.read_json(path)).items() if k not in free}
        if before != fixed:
            raise ValueError(f"{workdir} holds runs of another config; name another --workdir")
    files.write_json(path, fixed)


def _read_rows(workdir: Path, variants: Sequence[str]) -> list[dict[str, Any]]:
    """Returns every finished run of the workdir, in the order of `variants`, then by seed."""
    order = {variant: i for i, variant in reversed(list(enumerate(variants)))}
    runs = [files.read_json(path) for path in workdir.glob("*-*.json")]
    return sorted(runs, key=lambda one: (order.get(one["variant"], len(order)), one["variant"], one["seed"]))


def _path(workdir: Path, task: SweepTask) -> Path:
    return workdir / f"{task[0]}-{task[1]}.json"


def _run_task(run: RunTask, workdir: Path, task: SweepTask) -> SweepTask:
    variant, seed = task
    row = {"variant": variant, "seed": seed, **run(variant, seed)}
    files.write_json(_path(workdir, task), {**row, **results.surroundings()})
    return task


@contextlib.contextmanager
def _completed(
    run: Callable[[SweepTask], SweepTask], tasks: Sequence[SweepTask], workers: int
) -> Iterator[Iterator[SweepTask]]:
    """Yields an iterator over the tasks as they finish. Leaving the block early terminates the workers."""
    if workers == 1 or len(tasks) < 2:
        yield map(run, tasks)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores and workers > len(cores):
        raise ValueError(f"{workers} workers need a core each; this process may use {len(cores)}")
    os.environ["NPROC"] = "1"  # read by XLA in the workers: one thread each
    context = multiprocessing.get_context("spawn")
    free_cores = context.Queue()
    for core in cores:
        free_cores.put(core)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_init_worker, initargs=(free_cores,))
    try:
        futures: list[Future[SweepTask]] = [pool.submit(run, task) for task in tasks]
        yield (future.result() for future in as_completed(futures))
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _init_worker(free_cores: "multiprocessing.Queue[int]") -> None:
    """Pins a new worker to a core of its own and leaves Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {free_cores.get()})
    malloc_tuning.keep_freed_memory()
