"""Writes our 80 questions, ten in each of eight categories, and references for math, reasoning and coding.

    python -m mixattn.evals judge questions --bench=runs/bench

Any other folder in FastChat's layout works as well: put its question.jsonl there instead.
"""

from pathlib import Path

from absl import flags

from mixattn.evals import command_line
from mixattn.tools import files

FLAGS = flags.FLAGS
OWN = Path(__file__).parent.parent / "questions"
NAMES = ("question.jsonl", "reference_answer/own.jsonl")


def start(argv: list[str]) -> None:
    flags.DEFINE_string("bench", "", "The folder to write; existing questions are not replaced.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    root = Path(command_line.needed("bench", "runs/bench"))
    for name in NAMES:
        if (root / name).exists():
            raise ValueError(f"{root / name} exists already; choose another folder or remove it")
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(root / name, (OWN / name).read_text(encoding="utf-8"))
    count = len((OWN / NAMES[0]).read_text(encoding="utf-8").splitlines())
    print(f"wrote {count} questions to {root / NAMES[0]} and their references to {root / NAMES[1]}")
