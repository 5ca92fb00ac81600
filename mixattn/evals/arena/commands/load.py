"""Measures the platform under load: many visitors whose battles stream at once, votes and leaderboard timed.

    python -m mixattn.evals arena load --csv=results/arena_load.csv
    python -m mixattn.evals arena load --battles=50 --seconds=5 --votes=1000
    python -m mixattn.evals arena load --folder=/dev/shm                 the database in memory: no disk

Starts a real server process with scripted models over a database that holds --votes votes, and visits it
from this process over HTTP on the loopback: each visitor starts a battle, reads its stream, votes while the
others still stream, and starts the next. The leaderboard is loaded every 0.25 s. Times are those of the
visitor, each request over a connection of its own. Two rows are for comparison: how late this process itself
was, which those times include, and how long the disk takes for a flush, which a vote waits for. Nothing in
the answers was written by a model.
"""

import asyncio
import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.commands.load_client import Answer, ask, pieces
from mixattn.evals.arena.platform.store import ArenaStore
from pallas_kernels.results import processor, write_csv

FLAGS = flags.FLAGS
WORDS = "An answer of some length that says little about its subject and much about the patience of readers. "
MODELS = 10
ARRIVAL_S = 5.0
READ = 800  # bytes of a stream, after which the visitor votes
OWN = "this process was late by"


def start(argv: list[str]) -> None:
    flags.DEFINE_integer("battles", 200, "Battles that stream at once.", 1)
    flags.DEFINE_float("seconds", 20.0, "How long the visitors stay.", 1.0)
    flags.DEFINE_integer("votes", 20_000, "Votes in the database before.", 0)
    flags.DEFINE_string("folder", None, "Where to put the database; by default where temporary files are.")
    flags.DEFINE_string("csv", None, "File for the table.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    if FLAGS.folder and not Path(FLAGS.folder).is_dir():
        raise ValueError(f"--folder={FLAGS.folder} is not a folder")
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        names = [f"m{i}" for i in range(MODELS)]
        fill(Path(folder) / "arena.sqlite", names, FLAGS.votes)
        (Path(folder) / "models.toml").write_text(_models(names))
        print(f"{FLAGS.votes} votes are in the database; the visitors come", file=sys.stderr)
        with disk_times(Path(folder)) as disk:
            times, server_s = _visit(Path(folder))
        times |= {"a flush of 4 KiB to this disk": disk}
    rows = [_row(what, each) for what, each in times.items()]
    if FLAGS.csv:
        cpu = f"{processor()}, {os.cpu_count()} cores, visitors on the same machine"
        data = "scripted models, simulated visitors"
        write_csv(
            FLAGS.csv,
            rows,
            battles=FLAGS.battles,
            seconds=FLAGS.seconds,
            votes_before=FLAGS.votes,
            database="a temporary folder" if FLAGS.folder is None else FLAGS.folder,
            data=data,
            goal="p99 of a vote below 50 ms, of the leaderboard below 200 ms",
            device=cpu,
            server_cpu_s=round(server_s, 1),
            load_average=round(os.getloadavg()[0], 2),
        )
    if FLAGS.json:
        command_line.print_json({"battles": FLAGS.battles, "server_cpu_s": server_s, "rows": rows})
    else:
        print(command_line.table(list(rows[0]), [[str(x) for x in row.values()] for row in rows]))


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    if not seconds:
        return {"what": what, "n": 0, "p50_ms": None, "p99_ms": None, "max_ms": None}
    p50, p99, most = (round(1000 * float(x), 1) for x in np.quantile(seconds, [0.5, 0.99, 1.0]))
    return {"what": what, "n": len(seconds), "p50_ms": p50, "p99_ms": p99, "max_ms": most}


def _models(names: list[str]) -> str:
    entry = '[[model]]\nname = "{name}"\nscripted = "{text}"\ndelay_s = {delay_s}\n'
    return "".join(
        entry.format(name=name, text=(WORDS * 5).strip(), delay_s=0.03 + 0.01 * i)
        for i, name in enumerate(names)
    )


def fill(path: Path, names: list[str], votes: int) -> None:
    """A database with finished battles of random winners, in one transaction."""
    store = ArenaStore(path)
    store.sync_models(dict.fromkeys(names, 1.0))
    store.add_finished(names, votes, np.random.default_rng(0))
    store.close()


@contextlib.contextmanager
def disk_times(folder: Path) -> Iterator[list[float]]:
    """How long the disk takes to confirm 4 KiB, ten times a second meanwhile: no vote can be faster."""
    times: list[float] = []
    ended = threading.Event()

    def write() -> None:
        with (folder / "flushed").open("wb") as file:
            while not ended.wait(0.1):
                file.write(bytes(4096))
                file.flush()
                begin_s = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - begin_s)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def _visit(folder: Path) -> tuple[dict[str, list[float]], float]:
    """The times, and the server's processor seconds."""
    command = [sys.executable, "-m", "mixattn.evals", "arena", "serve", f"--models={folder}/models.toml"]
    command += [
        f"--db={folder}/arena.sqlite",
        "--port=0",
        "--per_minute=1000",
        "--per_minute_address=1000000",
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"http://\S+:(\d+)/", line)
        if not found:
            raise ValueError(f"the server did not start: {line.strip()}")
        times = asyncio.run(_crowd(int(found[1])))
    finally:
        server.terminate()
        server.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times, used.ru_utime + used.ru_stime


async def _crowd(port: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {n: [] for n in ("start a battle", "vote", "leaderboard", OWN)}
    end_s = time.monotonic() + ARRIVAL_S + FLAGS.seconds
    await ask(port, "/leaderboard")  # the first one computes

    async def reader() -> None:
        while time.monotonic() < end_s:
            await _timed(times["leaderboard"], ask(port, "/leaderboard"))
            await asyncio.sleep(0.25)

    async def watch() -> None:
        while time.monotonic() < end_s:
            begin_s = time.perf_counter()
            await asyncio.sleep(0.01)
            times[OWN].append(time.perf_counter() - begin_s - 0.01)

    visitors = (_visitor(port, i, end_s, times) for i in range(FLAGS.battles))
    await asyncio.gather(reader(), watch(), *visitors)
    return times


async def _timed(times: list[float], request: Any) -> Answer:
    begin_s = time.perf_counter()
    answer: Answer = await request
    times.append(time.perf_counter() - begin_s)
    if answer.status >= 400:
        raise ValueError(f"the server answered {answer.status}: {answer.body[-300:]}")
    return answer


async def _visitor(port: int, number: int, end_s: float, times: dict[str, list[float]]) -> None:
    """Battles one after the other; votes when some of the answer was read, which is while others stream."""
    await asyncio.sleep(number * ARRIVAL_S / FLAGS.battles)  # people do not come all at once
    session = (await ask(port, "/")).headers["set-cookie"].partition(";")[0]
    while time.monotonic() < end_s:
        form = {"mode": "battle", "prompt": f"question {number}"}
        began = await _timed(times["start a battle"], ask(port, "/battle", session, form))
        path = began.headers["location"]
        page = (await ask(port, path, session)).body
        token = re.search(r'name="token" value="(\w+)"', page)
        read = 0
        async with contextlib.aclosing(pieces(port, f"{path}/stream", session)) as stream:
            async for piece in stream:
                read += len(piece)
                if read > READ:
                    break
                if time.monotonic() > end_s:
                    return  # all would vote in one moment, which no crowd does
        vote = {"winner": "model_a", "token": token[1] if token else ""}
        await _timed(times["vote"], ask(port, f"{path}/vote", session, vote))
