"""Simulates vote rigging against each defence: how many rigged votes lift a model by one place?

    python -m mixattn.evals arena attack
    python -m mixattn.evals arena attack --accounts=50 --honest=100000 --csv=results/arena/attack.csv

The attacks: target_only votes for one model wherever it appears, omnipresent votes in every battle to help
it, always_left does not look. The defences: none, a cap on the votes one voter counts for, leaving out
voters whom the sequential anomaly test flags, and both. Everything is simulated; knowing the models is
taken for granted.
"""

import sys

from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats.rigging import RiggingConfig, table
from pallas_kernels.results import write_csv

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    default = RiggingConfig()
    flags.DEFINE_integer("models", default.models, "Number of models.", 3)
    flags.DEFINE_integer("honest", default.honest, "Honest votes.", 1000)
    flags.DEFINE_integer("voters", default.voters, "Honest voters; their votes follow Zipf's law.", 10)
    flags.DEFINE_integer("accounts", 50, "Accounts of the second attacker; the first has one.", 1)
    flags.DEFINE_integer("most", default.most, "Rigged votes beyond which the search gives up.", 10)
    flags.DEFINE_float("cap", default.cap, "Votes for which one voter counts at most.", 1.0)
    flags.DEFINE_integer("seed", 0, "Seed of everything.", 0)
    flags.DEFINE_string("csv", None, "File for the table.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    names = ("models", "honest", "voters", "accounts", "most", "cap", "seed")
    given = {name: FLAGS[name].value for name in names}
    config = RiggingConfig(**given, target=FLAGS.models // 2)
    print("simulated; a minute or two ...", file=sys.stderr)
    rows = table(config)
    if FLAGS.csv:
        write_csv(
            FLAGS.csv,
            rows,
            config=config,
            seed=FLAGS.seed,
            data="simulated votes and attackers",
            device="CPU",
        )
    if FLAGS.json:
        command_line.print_json({"honest": config.honest, "most": config.most, "rows": rows})
        return
    header = ["attack", "defence", "accounts", "votes_needed", "moved_elo"]
    lines = [[str(f"more than {config.most}" if r[n] is None else r[n]) for n in header] for r in rows]
    print(command_line.table(header, lines))
