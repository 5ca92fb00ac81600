"""Measures coverage of intervals and error of rank ranges in simulated worlds with known scores.

    python -m mixattn.evals arena coverage --trials=50
    python -m mixattn.evals arena coverage --trials=400 --csv=results/arena/coverage.csv

Nominal: marginal coverage 0.95; an error of at most 0.05 of the rank rules `pairwise` and `simultaneous`.
"""

import sys
from typing import Any

from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats.coverage import measure
from mixattn.evals.arena.stats.ranks import RULES
from mixattn.evals.arena.stats.synthetic import SyntheticConfig
from pallas_kernels.results import write_csv

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_integer("trials", 50, "Simulated worlds of each kind.", 1)
    flags.DEFINE_multi_integer("models", [4, 10, 20, 40], "Numbers of models; may be given repeatedly.", 2)
    flags.DEFINE_integer("votes_per_model", 1000, "Votes of a world, for each model.", 10)
    flags.DEFINE_integer("seed", 0, "First seed.", 0)
    flags.DEFINE_string("csv", None, "File for the table.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    rows: list[dict[str, Any]] = []
    for world in ("spread", "tied", "equal"):
        for m in FLAGS.models:
            votes = m * FLAGS.votes_per_model
            config = SyntheticConfig(models=m, votes=votes, world=world, seed=FLAGS.seed)
            found = measure(config, FLAGS.trials)
            row = {"world": world, "models": m, "votes": votes, "trials": found.trials}
            row |= {"marginal": found.marginal, "chi_square": found.chi_square}
            row |= {f"error_{rule}": found.rank_error[rule] for rule in RULES}
            row |= {f"width_{rule}": found.width[rule] for rule in RULES}
            rows.append({name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()})
            print(f"{world}, {m} models: done", file=sys.stderr)
    if FLAGS.csv:
        write_csv(FLAGS.csv, rows, seed=FLAGS.seed, alpha=0.05, data="simulated votes", device="CPU")
    if FLAGS.json:
        command_line.print_json({"rows": rows})
    else:
        print(command_line.table(list(rows[0]), [[str(x) for x in row.values()] for row in rows]))
