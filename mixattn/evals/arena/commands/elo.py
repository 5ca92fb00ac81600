"""Online Elo in file order, and its median over random orders.

    python -m mixattn.evals arena elo --votes=votes.jsonl --permutations=100

The last column but one is how far the order alone moves a rating: the middle 95 % over permutations.
"""

import numpy as np
from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats.elo import K, elo, permuted

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("votes", None, "File of votes: .parquet, .jsonl, .json or .csv.")
    flags.DEFINE_float("k", K, "Points that a vote moves at most.", 0.0)
    flags.DEFINE_integer("permutations", 100, "Random orders.", 2)
    flags.DEFINE_integer("seed", 0, "Seed of the random orders.", 0)
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    votes = command_line.votes(FLAGS.votes)
    in_order = elo(votes, k=FLAGS.k)
    shuffled = permuted(votes, FLAGS.permutations, np.random.default_rng(FLAGS.seed), k=FLAGS.k)
    lower, median, upper = np.quantile(shuffled, [0.025, 0.5, 0.975], axis=0)
    rows = [
        {
            "model": votes.models[i],
            "elo": in_order[i],
            "median": median[i],
            "lower": lower[i],
            "upper": upper[i],
        }
        for i in np.argsort(-median)
    ]
    rows = [{name: x if isinstance(x, str) else float(x) for name, x in row.items()} for row in rows]
    if FLAGS.json:
        command_line.print_json({"used": len(votes), "permutations": FLAGS.permutations, "models": rows})
        return
    header = ["model", "elo", "median", "lower", "upper"]
    print(command_line.table(header, [[r["model"], *(f"{r[n]:.1f}" for n in header[1:])] for r in rows]))
