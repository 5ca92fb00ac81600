"""Every scripted model on the same tasks, under both checks: what a table of rates may look like."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixattn.evals.dafny.protocol import Verify
from mixattn.evals.dafnybench import naming, runner
from mixattn.evals.dafnybench.checking import Task
from mixattn.evals.dafnybench.models import CHEATERS

MODELS = (
    *("identity", "oracle", "oracle@2", "oracle@3", "noisy@0.1", "noisy@0.3", "noisy@0.7"),
    *(f"cheater-{kind}" for kind in CHEATERS),
)


def rates(
    tasks: list[Task], verify: Verify, folder: Path, *, attempts: int, parallel: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each model as it is done; every attempt is kept in `folder`, so that a stopped run goes on.

    Raises:
      VerifierGone: the attempts made before are kept.
    """
    for name in MODELS:
        settings = {"model": name, "attempts": attempts, "seed": seed, "tasks": len(tasks)}
        journal = runner.Journal(folder / name, settings)
        model = naming.named(name, "", verify, seed)
        for _ in runner.run(tasks, model, verify, journal, attempts=attempts, parallel=parallel):
            pass
        done = [journal.attempts[task.name] for task in tasks]
        strict = sum(any(a.accepted for a in past) for past in done)
        public = sum(any(a.accepted_official for a in past) for past in done)
        yield {
            "model": name,
            "tasks": len(tasks),
            "attempts": attempts,
            "accepted": strict,
            "rate": round(strict / len(tasks), 4),
            "public_check_accepts": public,
            "public_check_rate": round(public / len(tasks), 4),
        }
