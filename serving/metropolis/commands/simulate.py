"""Replays a trace file under every mode on a simulated server, beside the bounds nothing can beat."""

import json

from absl import flags
from rich.console import Console
from rich.table import Table

from mixattn.tools import cli
from serving.metropolis.experiments.replay import bounds, replay
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.worlds import trace

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("trace", None, "A trace file; see the `trace` command.", required=True)
    flags.DEFINE_integer("replicas", 8, "Replicas of the simulated server.")
    flags.DEFINE_integer("slots", 64, "Calls a replica runs at once.")
    flags.DEFINE_bool("json", False, "Print JSON.")
    cli.run(_main, argv)


def _main() -> None:
    day = trace.load(FLAGS.trace)
    server = ServerConfig(replicas=FLAGS.replicas, max_running=FLAGS.slots)
    limits = bounds(day, server)
    rows = {
        mode: replay(day, mode, server, seen=limits.seen).summary()
        for mode in ("single_thread", "parallel_sync", "metropolis", "oracle")
    }
    if FLAGS.json:
        print(
            json.dumps({**rows, "critical_s": limits.critical_s, "no_dependency_s": limits.no_dependency_s})
        )
        return
    table = Table(title=f"{len(day.names)} agents, {day.steps} steps, {day.call_count} calls; virtual time")
    for column in ("mode", "seconds", "calls in flight", "mean cluster", "largest lead", "vs sync"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    sync = rows["parallel_sync"]["elapsed_s"]
    for mode, row in rows.items():
        cells = (row["elapsed_s"], row["parallelism"], row["mean_cluster"], row["largest_lead"])
        table.add_row(mode, *(f"{c:.4g}" for c in cells), f"{sync / max(row['elapsed_s'], 1e-9):.2f}x")
    table.add_row("bound: critical path", f"{limits.critical_s:.4g}")
    table.add_row("bound: all calls at once", f"{limits.no_dependency_s:.4g}")
    Console().print(table)
