"""Says how often two judges agree, with and without ties, by turn.

    python -m mixattn.evals judge agreement --judges=gpt4-pair,human --votes=gpt4.jsonl,human.jsonl --json
    python -m mixattn.evals judge agreement --judges=human,human --votes=human.json
    python -m mixattn.evals judge agreement --judges=a-pair,a-single --votes=a_pair.jsonl,a_single.jsonl

Files are human votes (JSON or JSON Lines), or judgment files of `judge run`. A judge goes by its name, by
NAME-pair or NAME-single, and by its kind: `human` is every expert_*, `author` every author_*, `gpt4-pair` is
gpt-4 in pairs.
"""

from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals import command_line
from mixattn.evals.judge import agreement
from mixattn.evals.judge.bench import Bench

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_list("judges", [], "Two judges; one twice compares different votes of its kind.")
    flags.DEFINE_list("votes", [], "Files of votes.")
    flags.DEFINE_string("bench", "", "Folder with question.jsonl: agreement by category as well.")
    flags.DEFINE_integer("seed", 0, "Seed of the resampled questions behind the intervals.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    if len(FLAGS.judges) != 2:
        raise ValueError(
            f"--judges names {len(FLAGS.judges)} judges; give two, e.g. --judges=gpt4-pair,human"
        )
    if not FLAGS.votes:
        raise ValueError("--votes is missing, e.g. --votes=gpt4_pair.jsonl,human.jsonl")
    votes = [vote for path in FLAGS.votes for vote in agreement.read_votes(Path(path))]
    one, other = FLAGS.judges
    agreement.check_judges(votes, (one, other))
    figures: dict[str, Any] = agreement.both_turns(votes, one, other, FLAGS.seed)
    text = _table(figures)
    if FLAGS.bench:
        category = {question.id: question.category for question in Bench(Path(FLAGS.bench)).questions()}
        figures["by_category"] = agreement.by_category(votes, one, other, category)
        text += "".join(f"\n\n{name}\n{_table(each)}" for name, each in figures["by_category"].items())
    if FLAGS.json:
        command_line.print_json(figures)
    else:
        print(text)


def _table(figures: dict[str, Any]) -> str:
    rows = []
    for turn in ("turn_1", "turn_2"):
        for ties in ("with_ties", "without_ties"):
            each = figures[turn][ties]
            interval = "-" if each["lower"] is None else f"{each['lower']:.2f} to {each['upper']:.2f}"
            counts = [str(each["agree"]), str(each["total"])]
            rows.append(
                [
                    f"{turn} {ties}".replace("_", " "),
                    *counts,
                    _two(each["ratio"]),
                    interval,
                    _two(each["kappa"]),
                ]
            )
    return command_line.table(("", "agree", "total", "ratio", "95 % interval", "kappa"), rows)


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
