"""Exclusive ownership of a run directory: one experiment, and one process at a time."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mixattn.tools import files
from mixattn.tools.exclusive import open_exclusive
from train.experiment import TrainingExperiment


@contextlib.contextmanager
def claimed(folder: Path, experiment: TrainingExperiment) -> Iterator[None]:
    """Creates `folder` and owns it for the block; only the first process of a distributed run locks it.

    Raises:
      ValueError: it holds another experiment, or another process is training in it.
      OSError: it cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index():
        yield
        return
    busy = f"another process is training in {folder}; wait for it or name another --workdir"
    with open_exclusive(folder / ".lock", busy):
        asked = json.loads(json.dumps(recipe(experiment)))
        if not (folder / "config.json").exists():
            files.write_json(folder / "config.json", asked)
        elif found := difference(files.read_json(folder / "config.json"), asked):
            name, before, now = found
            raise ValueError(
                f"{folder} holds a run of another config: {name} is {before!r} there and {now!r} here; "
                "name another --workdir or remove that one"
            )
        yield


def recipe(experiment: TrainingExperiment) -> dict[str, Any]:
    """The part of an experiment that decides its result."""
    return {name: dataclasses.asdict(getattr(experiment, name)) for name in ("data", "model", "train")}


def difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first leaf in which two trees differ: (name, one, other)."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name, before, now)
    for key in [*before, *(k for k in now if k not in before)]:
        inner = f"{name}.{key}" if name else str(key)
        if found := difference(before.get(key), now.get(key), inner):
            return found
    return None
