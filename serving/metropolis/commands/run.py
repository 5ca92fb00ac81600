"""Runs the town and logs it to WORKDIR/run.db. Ctrl-C stops it cleanly; `--resume` resumes it.

    python -m serving.metropolis run --workdir=runs/town
    python -m serving.metropolis run --workdir=runs/town --steps=1440 --resume
    python -m serving.metropolis run --workdir=runs/real --llm=http --url=http://127.0.0.1:8000/v1

With `--llm=stub` answers are scripted and time is virtual: a simulated server gives every call its duration.
With `--llm=http` any OpenAI-compatible endpoint answers for the residents.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from absl import flags

from mixattn.evals.llm import OpenAI, RetryPolicy
from mixattn.tools import files
from mixattn.tools.exclusive import open_exclusive
from mixattn.tools.progress import ProgressLines
from serving.metropolis.commands import command_line
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.engine import Simulation, SimulationRun
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.runtime.store import Commit, SqliteStore
from serving.metropolis.town import make_town, stub_model

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("workdir", "runs/town", "Directory of run.db and run.json.")
    flags.DEFINE_integer("residents", 12, "Number of residents, 1 to 25.")
    flags.DEFINE_integer("steps", 720, "Steps to run; 360 steps are an hour of the town.")
    live = ("metropolis", "parallel_sync", "single_thread")  # the other modes need a recorded trace
    flags.DEFINE_enum("mode", "metropolis", live, "The scheduler.")
    flags.DEFINE_integer("seed", 0, "Seed of the town and of every call.")
    flags.DEFINE_enum("llm", "stub", ("stub", "http"), "Answers from a script or from a server.")
    flags.DEFINE_string("url", "http://127.0.0.1:8000/v1", "URL of the server, for --llm=http.")
    flags.DEFINE_string("model", "mixattn", "Name of the model on the server.")
    flags.DEFINE_bool("chat", False, "Use the chat protocol instead of plain completions.")
    flags.DEFINE_string("api_key_env", "", "Environment variable with the API key of the server.")
    flags.DEFINE_integer("replicas", 2, "Number of replicas of the simulated server, for --llm=stub.")
    flags.DEFINE_integer("max_in_flight", 64, "Maximum number of concurrent calls; 0 means no maximum.")
    flags.DEFINE_float("timeout_s", 120.0, "Deadline of one attempt of a call; 0 means none.")
    flags.DEFINE_integer("retries", 3, "Retries of a failed call.")
    flags.DEFINE_bool("resume", False, "Resume the run in WORKDIR/run.db.")
    flags.DEFINE_integer("upto", -1, "With --resume: resume after this many commits; -1 means all.")
    flags.DEFINE_bool("json", False, "Print JSON instead of sentences.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    workdir = Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if FLAGS.steps < 1:
        raise ValueError(f"--steps is {FLAGS.steps}; it must be at least 1")
    busy = f"another process is running in {workdir}; wait for it or name another --workdir"
    with open_exclusive(workdir / ".lock", busy):
        result = _run_logged(workdir)
    figures = {"steps": FLAGS.steps, "mode": FLAGS.mode, "llm": FLAGS.llm, **result.stats.summary()}
    files.write_json(workdir / "run.json", figures)
    stats = result.stats
    if FLAGS.json:
        print(json.dumps(figures))
    else:
        _print(workdir, stats)
    if stats.fallbacks:
        calls = f"{stats.fallbacks} of {stats.fallbacks + stats.calls} calls failed after their last retry"
        print(f"warning: {calls}; the residents fell back on a script there", file=sys.stderr)
    if stats.fallbacks and not stats.calls + stats.reused:
        raise ValueError(
            f"the model server at {FLAGS.url} answered no call: this run is a script's, not a model's"
        )


def _print(workdir: Path, stats: RunStats) -> None:
    kind = "virtual seconds on a simulated server" if FLAGS.llm == "stub" else "seconds"
    print(
        f"{stats.agent_steps} agent-steps in {stats.commits} commits, {stats.calls} calls"
        f" ({stats.reused} more from the log) in {stats.elapsed_s:.1f} {kind};"
        f" {stats.parallelism:.2f} calls in flight on average, largest lead {max(stats.leads, default=0)}"
    )
    print(f"draw it: python -m serving.metropolis replay --workdir={workdir}")


def _run_logged(workdir: Path) -> SimulationRun:
    store = SqliteStore(workdir / "run.db")
    try:
        store.begin({"residents": FLAGS.residents})
        return _run(store)
    finally:
        store.close()


def _run(store: SqliteStore) -> SimulationRun:
    world, agents = make_town(FLAGS.residents)
    upto = None if FLAGS.upto < 0 else FLAGS.upto
    with ProgressLines(quiet=FLAGS.json) as lines:
        line, last = lines.add(FLAGS.steps), 0.0

        def show(commit: Commit) -> None:
            nonlocal last
            if time.monotonic() - last > 0.1:
                last = time.monotonic()
                base = sim.schedule.base_step
                line.update(base, _words(base, max(sim.schedule.step) - base, sim.stats))

        def warn(agent: str, step: int, why: Exception) -> None:
            if sim.stats.fallbacks == 1 and not FLAGS.json:
                lines.print(f"warning: {agent} at step {step} got no answer ({why}); a script decides")

        options = {
            "mode": FLAGS.mode,
            "seed": FLAGS.seed,
            "store": store,
            "max_in_flight": FLAGS.max_in_flight,
            "retry_policy": RetryPolicy(timeout_s=FLAGS.timeout_s, max_retries=FLAGS.retries),
            "checkpoint_every": 60,
            "on_commit": show,
            "on_fallback": warn,
        }
        if FLAGS.llm == "stub":
            server = SimulatedServer(ServerConfig(replicas=FLAGS.replicas), stub_model.reply)
            sim = Simulation(world, agents, server, **options)
            result = run_virtual(sim.run(FLAGS.steps, resume=FLAGS.resume, upto=upto))
        else:

            async def live() -> SimulationRun:
                nonlocal sim
                key = os.environ.get(FLAGS.api_key_env) if FLAGS.api_key_env else None
                async with OpenAI(FLAGS.url, FLAGS.model, api_key=key, chat=FLAGS.chat) as model:
                    sim = Simulation(world, agents, model, **options)
                    return await sim.run(FLAGS.steps, resume=FLAGS.resume, upto=upto)

            result = asyncio.run(live())
        line.update(FLAGS.steps, _words(FLAGS.steps, 0, result.stats))
    return result


def _words(step: int, lead: int, stats: RunStats) -> str:
    calls = f"{stats.in_flight} calls in flight, {stats.calls} done"
    return f"slowest at step {step}/{FLAGS.steps} · lead {lead} · {calls}"
