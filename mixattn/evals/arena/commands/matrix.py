"""Win rates of pairs of models, with intervals; a tie is half a win.

python -m mixattn.evals arena matrix --votes=votes.jsonl
"""

from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.win_matrix import rows_of, win_matrix

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("votes", None, "File of votes: .parquet, .jsonl, .json or .csv.")
    flags.DEFINE_float("alpha", 0.05, "One minus the level of the intervals.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    votes = command_line.votes(FLAGS.votes)
    pairs = rows_of(win_matrix(count(votes), command_line.fraction("alpha", FLAGS.alpha)), votes.models)
    if FLAGS.json:
        command_line.print_json({"used": len(votes), "pairs": pairs})
        return
    header = ["model_a", "model_b", "votes", "win_rate", "lower", "upper"]
    rows = [
        [p["model_a"], p["model_b"], str(p["votes"]), *(f"{p[n]:.3f}" for n in header[3:])] for p in pairs
    ]
    print(command_line.table(header, rows))
