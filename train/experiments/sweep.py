"""Many small runs of one config: spread over processes of one core each, each kept once it is finished.

A run is a name and a seed, its result a JSON file in the workdir. A run that has its file is not done again,
so a sweep that was stopped goes on where it was.
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
from train import malloc_tuning

type SweepTask = tuple[str, int]  # name and seed
# What does one run and returns its row; pickled, where there are several workers.
type RunTask = Callable[[str, int], dict[str, Any]]


def sweep(
    config: Any,
    jobs: Sequence[SweepTask],
    do: RunTask,
    workdir: Path,
    *,
    workers: int = 1,
    free: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Does every job that is not finished yet; returns all finished runs of the workdir, in the jobs' order.

    Args:
      config: dataclass that decides the results; a workdir is for one of them.
      workers: processes; each stays on one core. One: here, on whatever cores there are.
      free: fields of `config` that may differ between calls (those that only say which runs are wanted).

    Raises:
      ValueError: the workdir holds runs of another config, or there are fewer cores than workers.
    """
    claim(config, workdir, free)
    waiting = [job for job in jobs if not _path(workdir, job).exists()]
    with _done(functools.partial(_one, do, workdir), waiting, workers) as finished:
        for number, (name, seed) in enumerate(finished, start=1):
            print(f"{name} seed {seed} is finished, {number} of {len(waiting)}", flush=True)
    return read(workdir, [name for name, _ in jobs])


def command(kind: str, compare: Callable[[Any, Path, Path, int], None], workdir: str) -> None:
    """The command line of a sweep: --config, --workdir, --results, --workers.

    Args:
      kind: name of the dataclass that a config file of this command returns.
      compare: what is done with (config, workdir, folder of results, workers).
      workdir: where runs are kept by default.
    """

    def main() -> None:
        malloc_tuning.keep()
        config = cli.config()
        if type(config).__name__ != kind:
            raise ValueError(f"--config holds {type(config).__name__}, this command reads {kind}")
        compare(config, Path(flags.FLAGS.workdir), Path(flags.FLAGS.results), flags.FLAGS.workers)

    malloc_tuning.restart_with_huge_pages()
    logging.set_verbosity(logging.FATAL)
    cli.define_config()
    flags.DEFINE_string("workdir", workdir, "Folder in which finished runs are kept.")
    flags.DEFINE_string("results", "results", "Folder for the table and the picture.")
    flags.DEFINE_integer("workers", 1, "Runs side by side, each in a process on one core.", lower_bound=1)
    cli.run(main)


def claim(config: Any, workdir: Path, free: Sequence[str] = ()) -> None:
    """Makes the workdir this config's own.

    Raises:
      ValueError: it is another's.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    asked = json.loads(json.dumps(dataclasses.asdict(config)))
    asked = {name: value for name, value in asked.items() if name not in free}
    if (workdir / "config.json").exists() and files.read_json(workdir / "config.json") != asked:
        raise ValueError(f"{workdir} holds runs of another config; name another --workdir")
    files.write_json(workdir / "config.json", asked)


def read(workdir: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every finished run of the workdir, in the order of `names`, then by seed."""
    order = {name: i for i, name in reversed(list(enumerate(names)))}
    runs = [files.read_json(path) for path in workdir.glob("*-*.json")]
    return sorted(runs, key=lambda one: (order.get(one["variant"], len(order)), one["variant"], one["seed"]))


def _path(workdir: Path, job: SweepTask) -> Path:
    return workdir / f"{job[0]}-{job[1]}.json"


def _one(do: RunTask, workdir: Path, job: SweepTask) -> SweepTask:
    name, seed = job
    row = {"variant": name, "seed": seed, **do(name, seed)}
    files.write_json(_path(workdir, job), {**row, **results.surroundings()})
    return job


@contextlib.contextmanager
def _done(
    one: Callable[[SweepTask], SweepTask], jobs: Sequence[SweepTask], workers: int
) -> Iterator[Iterator[SweepTask]]:
    """The jobs as they finish. Leaving the block early ends the processes that are still at work."""
    if workers == 1 or len(jobs) < 2:
        yield map(one, jobs)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores and workers > len(cores):
        raise ValueError(f"{workers} workers want a core each; this process may use {len(cores)}")
    os.environ["NPROC"] = "1"  # read by XLA in the workers: one thread each
    context = multiprocessing.get_context("spawn")
    mine = context.Queue()
    for core in cores:
        mine.put(core)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(mine,))
    try:
        futures: list[Future[SweepTask]] = [pool.submit(one, job) for job in jobs]
        yield (future.result() for future in as_completed(futures))
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _settle(cores) -> None:
    """In a new worker: one core of its own, and Ctrl-C is the parent's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})
    malloc_tuning.keep()
