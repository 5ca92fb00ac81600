"""Simulates a trace under every scheduler in virtual time, beside the lower bounds.

python -m serving.metropolis trace --out=day.jsonl
python -m serving.metropolis simulate --trace=day.jsonl
python -m serving.metropolis simulate --trace=day.jsonl --replicas=2 --slots=16 --json
"""

import json

from absl import flags
from rich.console import Console
from rich.table import Table

from serving.metropolis.commands import command_line
from serving.metropolis.experiments.simulate import simulate_trace, trace_bounds
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.worlds.trace import load_trace

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("trace", None, "The trace file; the command `trace` writes one.", required=True)
    flags.DEFINE_integer("replicas", 8, "Number of replicas of the simulated server.")
    flags.DEFINE_integer("slots", 64, "Maximum number of calls that a replica runs at once.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    trace = load_trace(FLAGS.trace)
    server = ServerConfig(replicas=FLAGS.replicas, max_running=FLAGS.slots)
    limits = trace_bounds(trace, server)
    rows = {
        mode: simulate_trace(trace, mode, server, seen=limits.seen).summary()
        for mode in ("single_thread", "parallel_sync", "metropolis", "oracle")
    }
    if FLAGS.json:
        print(
            json.dumps({**rows, "critical_s": limits.critical_s, "no_dependency_s": limits.no_dependency_s})
        )
        return
    table = Table(
        title=f"{len(trace.names)} agents, {trace.steps} steps, {trace.call_count} calls; virtual time"
    )
    for column in ("mode", "seconds", "calls in flight", "mean cluster", "largest lead", "vs sync"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    sync = rows["parallel_sync"]["elapsed_s"]
    for mode, row in rows.items():
        cells = (row["elapsed_s"], row["parallelism"], row["mean_cluster"], row["largest_lead"])
        table.add_row(mode, *(f"{c:.4g}" for c in cells), f"{sync / max(row['elapsed_s'], 1e-9):.2f}x")
    table.add_row("bound: critical path", f"{limits.critical_s:.4g}")
    table.add_row("bound: all calls at once", f"{limits.no_dependency_s:.4g}")
    Console().print(table)
