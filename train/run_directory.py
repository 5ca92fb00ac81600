"""A folder belongs to one experiment, and to one process at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import jax

from mixattn.tools import files
from train.experiment import TrainingExperiment
from train.recipe import difference, recipe, upgrade


@contextlib.contextmanager
def claimed(folder: Path, experiment: TrainingExperiment) -> Iterator[None]:
    """Makes `folder`, and holds it for one experiment and one process at a time.

    Raises:
      ValueError: it holds another experiment, or another process is training in it.
      OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index():
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as why:
            raise ValueError(
                f"another process is training in {folder}; wait for it or name another --workdir"
            ) from why
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
