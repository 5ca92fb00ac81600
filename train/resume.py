"""What a resumed run may change in its recipe: whatever leaves its past as it was.

A run may train longer or shorter than it was going to (not shorter than it has trained), get further stages,
be evaluated otherwise, and compute its steps in other pieces. Data, model, optimizer, seed and batches stay.
"""

import re
from typing import Any, NamedTuple

# Fields of a recipe that only rounding, reports or the end of the run depend on.
_FREE = re.compile(
    r"train\.(evaluate_every|evaluate_windows|must_beat)$"
    r"|train\.compute\.(accumulate|remat|peak_flops)$"
)
_LENGTH = ("steps", "tokens", "seconds", "min_steps", "max_steps")
_STAGES = "train.stages"


class Change(NamedTuple):
    """A field of a recipe that differs: its name, its value before and its value now."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.before!r} -> {self.now!r}"


class ChangedPast(ValueError):
    """A recipe differs in what a run has done already."""


def allowed_changes(before: Any, now: Any, done: list[int] | None = None) -> list[Change]:
    """Returns what a resume changes.

    Args:
      before, now: recipes (`train.recipe`), as JSON.
      done: steps trained so far, by stage of `before`.

    Raises:
      ChangedPast: a field that decides what has been done differs; the message names it and both values.
    """
    done = done or []
    changes = differences(before, now)
    begun = sum(1 for steps in done if steps)
    for change in changes:
        if not (_FREE.search(change.name) or _is_of_future(change, begun)):
            raise ChangedPast(f"{change.name} is {change.before!r} there and {change.now!r} here")
    return changes


def _is_of_future(change: Change, begun: int) -> bool:
    """Whether only stages that have not begun, or the length of the last begun one, depend on the field."""
    match = re.fullmatch(rf"{re.escape(_STAGES)}\.(\d+)(?:\.(\w+))?", change.name)
    if match is None:
        return False
    stage, field = int(match[1]), match[2]
    if stage >= begun:
        return True
    return stage == begun - 1 and field in _LENGTH


def differences(before: Any, now: Any, name: str = "") -> list[Change]:
    """Every leaf in which two trees of dicts and lists differ; a value that is missing is None."""
    if isinstance(before, list) and isinstance(now, list):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [Change(name, before, now)]
    found = []
    for key in [*before, *(k for k in now if k not in before)]:
        inner = f"{name}.{key}" if name else str(key)
        found += differences(before.get(key), now.get(key), inner)
    return found


def steps_by_stage(step: int, steps: list[int]) -> list[int]:
    """Splits `step`, counted over all stages, by the stages' lengths."""
    done = []
    for length in steps:
        done.append(min(step, length))
        step -= done[-1]
    return done


def length_of(stage: dict[str, Any]) -> dict[str, Any]:
    """The fields of a stage's recipe that decide its length."""
    return {name: stage.get(name) for name in _LENGTH}
