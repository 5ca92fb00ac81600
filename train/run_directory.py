"""Exclusive ownership of a run directory: one experiment, and one process at a time."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from mixattn.tools import files
from mixattn.tools.exclusive import open_exclusive
from train.experiment import TrainingExperiment
from train.recipe import recipe, upgrade
from train.resume import Change, ChangedPast, allowed_changes, steps_by_stage

# What a start that failed before its first step may have left behind; the tokens have a record of their own.
_UNCLAIMED = ("steps.json", "baselines.json", "metrics.csv", "summary.json")


@dataclass
class Claim:
    """A run directory that this process owns.

    Attributes:
      asked: the recipe of the experiment.
      before: the recipe that the directory is claimed for; None if it is not claimed yet.
      done: steps trained so far, by stage.
      changes: what `asked` changes in `before`.
    """

    folder: Path
    asked: dict[str, Any]
    before: dict[str, Any] | None = None
    done: list[int] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def record(self) -> None:
        """Claims the directory for the recipe; called once everything before the first step has succeeded."""
        if jax.process_index() or (self.before is not None and not self.changes):
            return
        if self.changes:
            self._record_change()
        files.write_json(self.folder / "config.json", self.asked)

    def _record_change(self) -> None:
        path = self.folder / "config_changes.json"
        history = files.read_json(path) if path.exists() else []
        changes = [change._asdict() for change in self.changes]
        files.write_json(path, [*history, {"after_step": sum(self.done), "changes": changes}])


@contextlib.contextmanager
def claimed(folder: Path, experiment: TrainingExperiment, step: int | None = None) -> Iterator[Claim]:
    """Creates `folder` and owns it for the block; only the first process of a distributed run locks it.

    Args:
      step: checkpoint that is resumed instead of the newest.

    Raises:
      ValueError: it holds a run whose past this experiment would change, or another process trains in it.
      OSError: it cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index():
        yield _claim(folder, experiment, step)
        return
    busy = f"another process is training in {folder}; wait for it or name another --workdir"
    with open_exclusive(folder / ".lock", busy):
        claim = _claim(folder, experiment, step)
        if claim.before is None:
            for name in _UNCLAIMED:
                (folder / name).unlink(missing_ok=True)
        yield claim


def _claim(folder: Path, experiment: TrainingExperiment, step: int | None) -> Claim:
    asked = recipe(experiment)
    if not (folder / "config.json").exists():
        return Claim(folder, asked)
    before = upgrade(files.read_json(folder / "config.json"))
    done = _done(folder, step)
    try:
        changes = allowed_changes(before, asked, done)
    except ChangedPast as why:
        raise ValueError(
            f"{folder} holds a run of another config: {why}; name another --workdir or remove that one"
        ) from why
    return Claim(folder, asked, before, done, changes)


def _done(folder: Path, step: int | None) -> list[int]:
    """Steps by stage after which the run resumes."""
    if not (folder / "steps.json").exists():
        return []
    kept = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return steps_by_stage(
        max(kept, default=0) if step is None else step, files.read_json(folder / "steps.json")
    )
