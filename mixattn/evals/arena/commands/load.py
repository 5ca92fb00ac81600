"""Measures the platform under load: many visitors whose battles stream at once, votes and leaderboard timed.

    python -m mixattn.evals arena load --csv=results/arena_load.csv
    python -m mixattn.evals arena load --battles=50 --seconds=5 --votes=1000

Starts a real server process with scripted models over a database that holds --votes votes, and visits it
from this process over HTTP on the loopback: each visitor starts a battle, reads its stream, votes while the
others still stream, and starts the next. The leaderboard is loaded every 0.25 s. Times are those of the
visitor, its own processor time included. Nothing in the answers was written by a model.
"""

import asyncio
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from http.cookiejar import Cookie, CookieJar
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.platform.store import ArenaStore
from pallas_kernels.results import processor, write_csv

FLAGS = flags.FLAGS
WORDS = "An answer of some length that says little about its subject and much about the patience of readers. "
MODELS = 10
ARRIVAL_S = 5.0


def start(argv: list[str]) -> None:
    flags.DEFINE_integer("battles", 200, "Battles that stream at once.", 1)
    flags.DEFINE_float("seconds", 20.0, "How long the visitors stay.", 1.0)
    flags.DEFINE_integer("votes", 20_000, "Votes in the database before.", 0)
    flags.DEFINE_string("csv", None, "File for the table.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = [f"m{i}" for i in range(MODELS)]
        fill(Path(folder) / "arena.sqlite", names, FLAGS.votes)
        (Path(folder) / "models.toml").write_text(_models(names))
        print(f"{FLAGS.votes} votes are in the database; the visitors come", file=sys.stderr)
        times = _visit(Path(folder))
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
            data=data,
            device=cpu,
            load_average=os.getloadavg()[0],
        )
    if FLAGS.json:
        command_line.print_json({"battles": FLAGS.battles, "rows": rows})
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


def _visit(folder: Path) -> dict[str, list[float]]:
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
        found = re.search(r"http://\S+", line)
        if not found:
            raise ValueError(f"the server did not start: {line.strip()}")
        return asyncio.run(_crowd(found[0].rstrip("/")))
    finally:
        server.terminate()
        server.wait()


async def _crowd(url: str) -> dict[str, list[float]]:
    import httpx2

    times: dict[str, list[float]] = {"start a battle": [], "vote": [], "leaderboard": []}
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    end_s = time.monotonic() + ARRIVAL_S + FLAGS.seconds
    limits = httpx2.Limits(max_connections=2 * FLAGS.battles + 10)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits, cookies=NoCookies()) as http:
        await http.get("/leaderboard")  # the first one computes

        async def reader() -> None:
            while time.monotonic() < end_s:
                times["leaderboard"].append(await _timed(http.get("/leaderboard")))
                await asyncio.sleep(0.25)

        visitors = (_visitor(http, i, end_s, times) for i in range(FLAGS.battles))
        await asyncio.gather(reader(), *visitors)
    return times


class NoCookies(CookieJar):
    """Keeps nothing: one connection pool serves many visitors, who send their own cookies."""

    def set_cookie(self, cookie: Cookie) -> None:
        pass


async def _timed(request: Any) -> float:
    begin_s = time.perf_counter()
    response = await request
    if response.status_code >= 400:
        raise ValueError(f"the server answered {response.status_code}: {response.text[:200]}")
    return time.perf_counter() - begin_s


async def _visitor(http: Any, number: int, end_s: float, times: dict[str, list[float]]) -> None:
    """Battles one after the other; votes when some of the answer was read, which is while others stream."""
    await asyncio.sleep(number * ARRIVAL_S / FLAGS.battles)  # people do not come all at once
    session = (await http.get("/")).headers["set-cookie"].partition(";")[0]
    own = {"cookie": session}
    while time.monotonic() < end_s:
        form = {"mode": "battle", "prompt": f"question {number}"}
        begin_s = time.perf_counter()
        began = await http.post("/battle", data=form, headers=own)
        times["start a battle"].append(time.perf_counter() - begin_s)
        path = began.headers["location"]
        token = re.search(r'name="token" value="(\w+)"', (await http.get(path, headers=own)).text)
        async with http.stream("GET", f"{path}/stream", headers=own) as stream:
            read = 0
            async for line in stream.aiter_lines():
                read += len(line)
                if read > 800 or time.monotonic() > end_s:
                    break
        vote = {"winner": "model_a", "token": token[1] if token else ""}
        if read > 100:
            times["vote"].append(await _timed(http.post(f"{path}/vote", data=vote, headers=own)))
