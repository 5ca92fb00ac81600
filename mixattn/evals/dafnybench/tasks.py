"""Where tasks come from: our own programs, or a checkout of the public benchmark, which is only read."""

import random
from dataclasses import replace
from pathlib import Path

from mixattn.evals.dafny.command_line import followed, read_program
from mixattn.evals.dafny.dialect import level_for, rewrite
from mixattn.evals.dafny.protocol import Verify
from mixattn.evals.dafny.strip import strip
from mixattn.evals.dafnybench.checking import Task

OWN = Path(__file__).parent / "own"
PUBLIC = Path("DafnyBench") / "dataset"


def load(data: str) -> list[Task]:
    """The tasks of `data`: "own", or the folder of a checkout of the public repository.

    Raises:
      ValueError: the folder lacks what a checkout has.
    """
    return own() if data == "own" else public(Path(data))


def own() -> list[Task]:
    """Our programs, in order of their names."""
    return [_own(path) for path in sorted(OWN.glob("*.dfy"))]


def _own(path: Path) -> Task:
    program = path.read_text(encoding="utf-8")
    return Task(path.stem, program, strip(program))


def public(checkout: Path) -> list[Task]:
    """The public programs that have a twin without hints.

    Raises:
      ValueError: a folder is missing or empty.
    """
    truths = ground_truths(checkout)
    folder = checkout / PUBLIC / "hints_removed"
    if not folder.is_dir():
        raise ValueError(f"{checkout} has no {PUBLIC / 'hints_removed'}; name a checkout of DafnyBench")
    tasks = []
    for name, original in truths:
        twin = folder / f"{name}_no_hints.dfy"
        if twin.exists():
            tasks.append(Task(name, original, read_program(str(twin))))
    if not tasks:
        raise ValueError(f"{folder} holds no file ..._no_hints.dfy for any of {len(truths)} programs")
    return tasks


def ground_truths(checkout: Path) -> list[tuple[str, str]]:
    """(name, program) of every public program with its hints.

    Raises:
      ValueError: the folder is missing or empty.
    """
    folder = checkout / PUBLIC / "ground_truth"
    if not folder.is_dir():
        raise ValueError(f"{checkout} has no {PUBLIC / 'ground_truth'}; name a checkout of DafnyBench")
    files = sorted(folder.glob("*.dfy"))
    if not files:
        raise ValueError(f"{folder} holds no .dfy file")
    return [(path.stem, read_program(str(path))) for path in files]


def in_dialect(task: Task, verify: Verify) -> tuple[Task, int]:
    """The task as the verifier at hand reads it, and the level of rewriting that took."""
    level = level_for(task.original, verify)
    texts = {name: rewrite(getattr(task, name), level) for name in ("original", "stripped")}
    return replace(task, **texts), level


def chosen(data: str, dialect: str, sample: int, seed: int, verify: Verify) -> list[Task]:
    """The tasks of a run, in order of their names.

    Args:
      dialect: "auto" rewrites them for the verifier at hand.
      sample: only so many, drawn by `seed`; 0: all.
    """
    questions = load(data)
    if sample and sample < len(questions):
        drawn = random.Random(f"tasks {seed}").sample(range(len(questions)), sample)
        questions = [questions[i] for i in sorted(drawn)]
    if dialect == "auto":
        n = len(questions)
        each = followed(questions, n, lambda i, _: f"{i}/{n} rewritten") if n > 1 else questions
        questions = [in_dialect(task, verify)[0] for task in each]
    return questions
