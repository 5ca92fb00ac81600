"""Ranks models from pairwise votes, and collects the votes.

    python -m mixattn.evals arena simulate --out=votes.jsonl --votes=20000
        votes with a known truth
    python -m mixattn.evals arena fit --votes=votes.jsonl
        ratings, intervals, rank ranges
    python -m mixattn.evals arena fit --votes=votes.jsonl --cluster=judge --json
        one voter's votes are dependent
    python -m mixattn.evals arena elo --votes=votes.jsonl
        online Elo and its order dependence
    python -m mixattn.evals arena matrix --votes=votes.jsonl
        win rates of pairs with intervals
    python -m mixattn.evals arena anomalies --votes=votes.jsonl
        voters who do not vote like the rest
    python -m mixattn.evals arena plot --votes=votes.jsonl --out=ratings.png
        the intervals as a picture
    python -m mixattn.evals arena serve --models=models.toml --db=arena.sqlite
        the platform, on 127.0.0.1:8700
    python -m mixattn.evals arena attack
        vote rigging against each defence
    python -m mixattn.evals arena coverage
        coverage and rank error, by simulation
    python -m mixattn.evals arena bench
        speed beside other programs
    python -m mixattn.evals arena load
        the platform under 200 battles at once

`--help` after a command lists its flags.
"""

import importlib
import sys

from mixattn.tools.dispatch import named_module, rest

COMMANDS = (
    "fit",
    "elo",
    "matrix",
    "anomalies",
    "simulate",
    "plot",
    "serve",
    "attack",
    "coverage",
    "bench",
    "load",
)


def start(argv: list[str]) -> None:
    """Runs the subcommand named by the first argument; exits with code 2 if there is none of that name."""
    name = named_module(argv, __doc__, {name: f"mixattn.evals.arena.commands.{name}" for name in COMMANDS})
    if name is None:
        return
    try:
        command = importlib.import_module(name)
    except ModuleNotFoundError as why:
        print(f"error: {why.name} is not installed: pip install 'mixattn[evals]'", file=sys.stderr)
        sys.exit(2)
    command.start(rest(argv))
