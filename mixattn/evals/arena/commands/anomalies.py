"""Finds voters who do not vote like the rest.

    python -m mixattn.evals arena anomalies --votes=votes.jsonl
    python -m mixattn.evals arena anomalies --votes=votes.jsonl --rule=products --alpha=0.05 --json

Each voter (field judge) is compared with the others' votes on the same pairs. Of honest voters, at most a
share of `alpha` is flagged. `--rule=paper` is the published rule to the letter; it finds almost nobody.
"""

import sys
from dataclasses import asdict

import numpy as np
from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats.anomalies import RULES, find_anomalies

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("votes", None, "File of votes: .parquet, .jsonl, .json or .csv.")
    flags.DEFINE_enum("rule", "randomised", RULES, "The test.")
    flags.DEFINE_float("alpha", 0.1, "Share of honest voters that may be flagged.")
    flags.DEFINE_integer("min_votes", 5, "Voters with fewer votes are not judged.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the random times and tie-breaks.", 0)
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    votes = command_line.votes(FLAGS.votes, ["judge"])
    rng = np.random.default_rng(FLAGS.seed)
    alpha = command_line.fraction("alpha", FLAGS.alpha)
    found = find_anomalies(votes, rule=FLAGS.rule, alpha=alpha, rng=rng, min_votes=FLAGS.min_votes)
    flagged = [verdict for verdict in found if verdict.flagged]
    if FLAGS.json:
        head = {"rule": FLAGS.rule, "alpha": alpha, "judged": len(found), "flagged": len(flagged)}
        command_line.print_json(head | {"voters": [asdict(verdict) for verdict in found]})
        return
    print(
        command_line.table(
            ["voter", "votes", "flagged after"], [[v.voter, str(v.votes), str(v.at_vote)] for v in flagged]
        )
    )
    print(f"{len(flagged)} of {len(found)} voters flagged; rule {FLAGS.rule}, alpha {alpha}", file=sys.stderr)
