"""Runs agents out of order with the results of lock-step execution.

    python -m serving.metropolis run --workdir=runs/town                       a small town, scripted answers
    python -m serving.metropolis run --workdir=runs/town --resume              resume after Ctrl-C or a crash
    python -m serving.metropolis replay --workdir=runs/town                    draw it: runs/town/replay.html
    python -m serving.metropolis check --workdir=runs/town                     audit its commit log
    python -m serving.metropolis trace --out=day.jsonl --agents=25             write a synthetic trace
    python -m serving.metropolis simulate --trace=day.jsonl                    every scheduler, virtual time
    python -m serving.metropolis experiment --config=configs/metropolis.py:E2  the paper's experiments
    python -m serving.metropolis gantt --out=gantt.png                         agent-steps over time, by mode
    python -m serving.metropolis live --config=configs/metropolis.py:E7        the town on our own engine
    python -m serving.metropolis bench                                         the graph's cost per commit

`--help` after a command lists its flags.
"""

import sys

from mixattn.tools.dispatch import dispatch

COMMANDS = ("run", "replay", "check", "trace", "simulate", "experiment", "gantt", "live", "bench")


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; exits with code 2 if there is none of that name."""
    dispatch(argv, __doc__, {name: f"serving.metropolis.commands.{name}" for name in COMMANDS})


if __name__ == "__main__":
    main(sys.argv)
