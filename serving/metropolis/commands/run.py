"""Runs the town and logs it to WORKDIR/run.db; Ctrl-C stops it cleanly and `--resume` goes on.

Without a server (`--llm=stub`) answers are scripted and time is virtual: a simulated server makes the calls
take as long as they would. With `--llm=http` any OpenAI-compatible endpoint speaks for the residents.
"""

import asyncio
import json
import os
import time
from pathlib import Path

from absl import flags
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mixattn.evals.llm import OpenAI
from mixattn.tools import cli, files
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.engine import Simulation, SimulationRun
from serving.metropolis.runtime.retry import RetryPolicy
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.runtime.store import Commit, SqliteStore
from serving.metropolis.town import prompts, town

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("workdir", "runs/town", "Where run.db and run.json go.")
    flags.DEFINE_integer("residents", 12, "People in town, 1 to 25.")
    flags.DEFINE_integer("steps", 720, "Steps to run; 360 are an hour of the town.")
    live = ("metropolis", "parallel_sync", "single_thread")  # the two other modes only replay traces
    flags.DEFINE_enum("mode", "metropolis", live, "Who may run when.")
    flags.DEFINE_integer("seed", 0, "Of the town and of every call.")
    flags.DEFINE_enum("llm", "stub", ("stub", "http"), "Who speaks for the residents.")
    flags.DEFINE_string("url", "http://127.0.0.1:8000/v1", "Of the server, for --llm=http.")
    flags.DEFINE_string("model", "mixattn", "Model name to ask the server for.")
    flags.DEFINE_bool("chat", False, "Use the chat protocol instead of plain completions.")
    flags.DEFINE_string("api_key_env", "", "Environment variable that holds the server's key.")
    flags.DEFINE_integer("replicas", 2, "Replicas of the simulated server, for --llm=stub.")
    flags.DEFINE_integer("max_in_flight", 64, "Calls at the model at once; 0 means no cap.")
    flags.DEFINE_float("timeout_s", 120.0, "Of one call; 0 waits for ever.")
    flags.DEFINE_integer("retries", 3, "After a failed call.")
    flags.DEFINE_bool("resume", False, "Go on from WORKDIR/run.db.")
    flags.DEFINE_integer("upto", -1, "With --resume: go on from this many commits.")
    flags.DEFINE_bool("json", False, "Print the figures as JSON.")
    cli.run(_main, argv)


def _main() -> None:
    workdir = Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if FLAGS.steps < 1:
        raise ValueError(f"--steps is {FLAGS.steps}; it must be at least 1")
    store = SqliteStore(workdir / "run.db")
    try:
        store.begin({"residents": FLAGS.residents})
        result = _run(store)
    finally:
        store.close()
    figures = {"steps": FLAGS.steps, "mode": FLAGS.mode, "llm": FLAGS.llm, **result.stats.summary()}
    files.write_json(workdir / "run.json", figures)
    if FLAGS.json:
        print(json.dumps(figures))
        return
    meter = result.stats
    kind = "virtual seconds on a simulated server" if FLAGS.llm == "stub" else "seconds"
    print(
        f"{meter.agent_steps} agent-steps in {meter.commits} commits, {meter.calls} calls"
        f" ({meter.reused} more from the log) in {meter.elapsed_s:.1f} {kind};"
        f" {meter.parallelism:.2f} calls in flight on average, largest lead {max(meter.leads, default=0)}"
    )
    print(f"draw it: python -m serving.metropolis replay --workdir={workdir}")


def _run(store: SqliteStore) -> SimulationRun:
    world, agents = town(FLAGS.residents)
    upto = None if FLAGS.upto < 0 else FLAGS.upto
    with _progress() as progress:
        task = progress.add_task("", total=FLAGS.steps, lead=0, flight=0, calls=0)
        last = 0.0

        def show(commit: Commit) -> None:
            nonlocal last
            if time.monotonic() - last > 0.1:
                last = time.monotonic()
                base = sim.schedule.base_step
                lead = max(sim.schedule.step) - base
                meter = sim.stats
                progress.update(task, completed=base, lead=lead, flight=meter.in_flight, calls=meter.calls)

        options = {
            "mode": FLAGS.mode,
            "seed": FLAGS.seed,
            "store": store,
            "max_in_flight": FLAGS.max_in_flight,
            "retry_policy": RetryPolicy(timeout_s=FLAGS.timeout_s, max_retries=FLAGS.retries),
            "checkpoint_every": 60,
            "on_commit": show,
        }
        if FLAGS.llm == "stub":
            server = SimulatedServer(ServerConfig(replicas=FLAGS.replicas), prompts.reply)
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
        progress.update(task, completed=FLAGS.steps)
    return result


def _progress() -> Progress:
    words = "slowest at step {task.completed}/{task.total} · lead {task.fields[lead]}"
    load = "{task.fields[flight]} calls in flight, {task.fields[calls]} done"
    columns = (TextColumn(words), BarColumn(), TextColumn(load), TimeElapsedColumn())
    return Progress(*columns, disable=FLAGS.json)
