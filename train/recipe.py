"""The recipe of a run: the part of its configuration that decides its result, kept in its folder as JSON."""

import dataclasses
import json
from typing import Any

from train.experiment import TrainingExperiment

# Field names of recipes that older versions wrote, by the field that holds them: old name -> today's name.
# "" is the top level, where sweeps keep their own fields.
_RENAMED_FIELDS: dict[str, dict[str, str]] = {
    "": {"starts": "inits", "rate": "lr_scale"},
    "train": {"start": "init_from", "start_kv": "kv_init", "gate": "must_beat"},
    "stages": {
        "least_steps": "min_steps",
        "most_steps": "max_steps",
        "trains": "trainable",
        "rate": "lr_scale",
    },
    "optimizer": {
        "rule": "name",
        "rate": "learning_rate",
        "adam_rate": "adam_learning_rate",
        "final": "final_lr_ratio",
    },
}


def recipe(experiment: TrainingExperiment) -> dict[str, Any]:
    """Returns the part of an experiment that decides its result."""
    return as_json({name: getattr(experiment, name) for name in ("data", "model", "train")})


def as_json(config: Any) -> Any:
    """Returns a dataclass, or a dict of dataclasses, as a JSON file gives it back."""
    return json.loads(json.dumps(config, default=dataclasses.asdict))


def upgrade(recipe: Any, name: str = "") -> Any:
    """Returns a recipe, as read from a file of any version, under today's field names."""
    if isinstance(recipe, list):
        return [upgrade(entry, name) for entry in recipe]
    if not isinstance(recipe, dict):
        return recipe
    today = _RENAMED_FIELDS.get(name, {})
    return {today.get(key, key): upgrade(value, key) for key, value in recipe.items()}


def difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Returns the first leaf in which two trees differ as (name, before, now), or None."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name, before, now)
    for key in [*before, *(k for k in now if k not in before)]:
        inner = f"{name}.{key}" if name else str(key)
        if found := difference(before.get(key), now.get(key), inner):
            return found
    return None
