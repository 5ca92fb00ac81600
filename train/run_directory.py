"""Exclusive ownership of a run directory: one experiment, and one process at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from mixattn.tools import files
from mixattn.tools.exclusive import open_exclusive
from train.experiment import TrainingExperiment
from train.recipe import difference, recipe, upgrade


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
        asked = recipe(experiment)
        if not (folder / "config.json").exists():
            files.write_json(folder / "config.json", asked)
        elif found := difference(upgrade(files.read_json(folder / "config.json")), asked):
            name, before, now = found
            raise ValueError(
                f"{folder} holds a run of another config: {name} is {before!r} there and {now!r} here; "
                "name another --workdir or remove that one"
            )
        yield
