"""Writes simulated votes with a known truth, in the public format.

    python -m mixattn.evals arena simulate --out=votes.jsonl --votes=20000
    python -m mixattn.evals arena simulate --out=votes.parquet --models=40 --world=tied --skew=1.5
    python -m mixattn.evals arena simulate --out=odd.jsonl --anomaly=always_left --anomalous=5

The file names the models m00, m01, ... from best to worst. Nothing in it was voted by anyone.
"""

import sys
from pathlib import Path

from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats.synthetic import (
    ANOMALIES,
    WORLDS,
    SyntheticConfig,
    json_lines,
    records,
    simulate,
)
from mixattn.tools import files

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("out", None, "File to write: .jsonl or .parquet.")
    flags.DEFINE_integer("models", 10, "Number of models.")
    flags.DEFINE_integer("votes", 10_000, "Number of votes.")
    flags.DEFINE_enum(
        "world", "spread", WORLDS, "True scores: even, in groups of four alike, all equal, Beta(1/2, 1/2)."
    )
    flags.DEFINE_float("width", 2.0, "Distance of the best and the worst score, in natural-log odds.")
    flags.DEFINE_float("tie_rate", 0.2, "Share of ties.")
    flags.DEFINE_float("skew", 0.0, "Above 0, close models meet more often.")
    flags.DEFINE_integer("voters", 500, "Number of voters; their votes follow Zipf's law.")
    flags.DEFINE_enum("anomaly", "none", ANOMALIES, "How the anomalous voters vote.")
    flags.DEFINE_integer("anomalous", 0, "Number of anomalous voters: those with the most votes.")
    flags.DEFINE_float("style_beta", 0.0, "Weight of the difference in length on a vote.")
    flags.DEFINE_float("intransitive", 0.0, "Strength of a cycle through the models.")
    flags.DEFINE_integer("seed", 0, "Seed of everything.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    if not FLAGS.out:
        raise ValueError("--out is missing; name a file, e.g. --out=votes.jsonl")
    names = SyntheticConfig.__dataclass_fields__
    votes, _ = simulate(SyntheticConfig(**{name: FLAGS[name].value for name in names}))
    out = Path(FLAGS.out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--out={out} ends in neither .jsonl nor .parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(out) as draft:
        if out.suffix == ".jsonl":
            with draft.open("w", encoding="utf-8") as file:
                file.writelines(json_lines(votes))
        else:
            import pyarrow as pa
            import pyarrow.parquet

            pyarrow.parquet.write_table(pa.Table.from_pylist(list(records(votes))), draft)
    print(f"wrote {len(votes)} simulated votes on {len(votes.models)} models to {out}", file=sys.stderr)
