"""Shows what a judgment file says: mean scores, or wins, losses and ties; and what had no verdict.

    python -m mixattn.evals judge show --mode=single --judgments=runs/bench/model_judgment/big_single.jsonl
    python -m mixattn.evals judge show --mode=pairwise_all --judgments=big_pair.jsonl --rank
    python -m mixattn.evals judge show --mode=pairwise_baseline --baseline=echo --judgments=big_pair.jsonl

A pair is won if both orders agree, else it is a tie. --rank fits Bradley-Terry scores to these verdicts, with
intervals from resampled questions.
"""

from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals import command_line
from mixattn.evals.judge import tables
from mixattn.evals.judge.matches import MODES

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_enum("mode", "single", MODES, "What the file holds, and how to show it.")
    flags.DEFINE_string("judgments", "", "A file of model_judgment/.")
    flags.DEFINE_string("baseline", "", "With pairwise_baseline: the model that the others meet.")
    flags.DEFINE_bool("rank", False, "Also fit Bradley-Terry scores to pairwise verdicts.")
    flags.DEFINE_integer("resamples", 1000, "With --rank: resamples of questions.")
    flags.DEFINE_integer("seed", 0, "With --rank: seed of the resamples.")
    flags.DEFINE_float(
        "strong_wins", 3.0, "With --rank: wins that a strong verdict of five labels counts as."
    )
    flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    path = Path(command_line.needed("judgments", "runs/bench/model_judgment/big_pair.jsonl"))
    if (FLAGS.mode == "pairwise_baseline") != bool(FLAGS.baseline):
        raise ValueError(
            f"--mode={FLAGS.mode} with --baseline={FLAGS.baseline!r}; pairwise_baseline needs one"
        )
    if FLAGS.mode == "single":
        if FLAGS.rank:
            raise ValueError("--rank needs pairwise verdicts, but --mode is single")
        figures = tables.single(tables.read_judgments(path, "single"))
        text = _single_table(figures)
    else:
        rows = tables.read_judgments(path, "pair")
        figures = tables.pairwise(rows, FLAGS.baseline)
        text = _pair_table(figures, len(rows))
        if FLAGS.rank:
            from mixattn.evals.judge import ranking  # needs scipy

            figures["ranking"] = ranking.rank(
                rows, resamples=FLAGS.resamples, seed=FLAGS.seed, strong_wins=FLAGS.strong_wins
            )
            text += "\n\n" + _rank_table(figures["ranking"])
    if FLAGS.json:
        command_line.print_json(figures)
    else:
        print(text)


def _single_table(figures: dict[str, Any]) -> str:
    def cell(column: str, model: str) -> str:
        value = figures[column].get(model)
        return "-" if value is None else f"{value:.2f}"

    models = [*figures["average"], *(m for m in figures["unparsed"] if m not in figures["average"])]
    columns = ("turn_1", "turn_2", "average")
    rows = [[m, *(cell(c, m) for c in columns), str(figures["unparsed"][m])] for m in models]
    return command_line.table(("model", "turn 1", "turn 2", "average", "no rating"), rows)


def _pair_table(figures: dict[str, Any], n_rows: int) -> str:
    rows = [
        [model, *(str(each[name]) for name in ("win", "loss", "tie"))]
        + [f"{each[name]:.3f}" for name in ("win_rate", "loss_rate", "win_rate_adjusted")]
        for model, each in figures["models"].items()
    ]
    header = ("model", "win", "loss", "tie", "win rate", "loss rate", "adjusted")
    return f"{command_line.table(header, rows)}\n{figures['errors']} of {n_rows} pairs have no verdict"


def _rank_table(ranking: dict[str, Any]) -> str:
    rows = [
        [m["model"], f"{m['rating']:.0f}", f"{m['lower']:.0f} to {m['upper']:.0f}"] for m in ranking["models"]
    ]
    return command_line.table(("model", "rating", "95 % interval"), rows)
