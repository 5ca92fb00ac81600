"""The recipe of a run: the part of its configuration that decides its result, kept in its folder as JSON."""

import dataclasses
import json
from typing import Any

from mixattn import ModelConfig
from train.data import DataConfig
from train.experiment import Stage, TrainConfig, TrainingExperiment
from train.optimizer import OptimizerConfig
from train.step import ComputeConfig

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
# Fields that an older version did not have were as they are by default.
_CLASSES: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "stages": Stage,
    "optimizer": OptimizerConfig,
    "compute": ComputeConfig,
}


def recipe(experiment: TrainingExperiment) -> dict[str, Any]:
    """Returns the part of an experiment that decides its result."""
    return as_json({name: getattr(experiment, name) for name in ("data", "model", "train")})


def as_json(config: Any) -> Any:
    """Returns a dataclass, or a dict of dataclasses, as a JSON file gives it back."""
    return json.loads(json.dumps(config, default=dataclasses.asdict))


def upgrade(recipe: Any, name: str = "") -> Any:
    """Returns a recipe, as read from a file of any version, with today's fields."""
    if isinstance(recipe, list):
        return [upgrade(entry, name) for entry in recipe]
    if not isinstance(recipe, dict):
        return recipe
    today = _RENAMED_FIELDS.get(name, {})
    renamed = {today.get(key, key): upgrade(value, key) for key, value in recipe.items()}
    return {**as_json(_CLASSES[name]()), **renamed} if name in _CLASSES else renamed
