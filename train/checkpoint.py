"""Checkpoints with orbax: asynchronous, atomic, newest n and best n kept, restorable onto another mesh.

Orbax writes a checkpoint under a temporary name and renames it, so it is complete or absent. It holds digests
of all its files: one that was damaged afterwards is refused; an older one is used only when a user names its
step.
"""

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.path import atomicity

from train import digests
from train.step import TrainState

type Hook = Callable[["sys.UnraisableHookArgs"], Any]


def ignore_closed_loop_errors(hook: Hook) -> Hook:
    """Wraps a `sys.unraisablehook` so that it skips what tensorstore's threads report after a failed write.

    They answer to an event loop that orbax has closed by then. `Checkpoints` raises the cause of the failure.
    """

    def wrapped(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return wrapped


class _WithDigests(atomicity.AtomicRenameTemporaryPath):
    """Adds the digests to a finished checkpoint before it gets its name."""

    _final_path: epath.Path

    async def finalize(self) -> None:
        named: epath.Path = self._final_path
        if (
            self._tmp_path.suffix in named.parent.suffixes
        ):  # a part of a checkpoint, which has digests as a whole
            await super().finalize()
            return
        # Still a temporary name, which orbax removes at its next start.
        self._final_path = epath.Path(f"{self._tmp_path}-whole")
        try:
            await super().finalize()
        finally:
            whole, self._final_path = self._final_path, named
        await asyncio.to_thread(digests.write, Path(whole))
        await asyncio.to_thread(whole.rename, named)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: created if missing.
      keep_last: number of newest checkpoints to keep.
      keep_best: number of checkpoints with the lowest validation loss to keep in addition.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_best: int = 1):
        self.folder = folder
        self._checked: set[int] = set()
        kept = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep_last),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["validation"],
                    reverse=True,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self.manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=kept, cleanup_tmp_directories=True, temporary_path_class=_WithDigests
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, oldest first."""
        return sorted(self.manager.all_steps())

    def save(
        self, step: int, state: TrainState, meta: dict[str, Any], validation: float | None = None
    ) -> None:
        """Copies `state` off the devices and returns; the write continues in the background.

        Args:
          step: counted over all stages.
          meta: JSON: positions of the data iterator, the clock and the evaluations.
          validation: loss in nats per token, if measured at this step.

        Raises:
          OSError: this checkpoint or the one before could not be written.
        """
        self._check_disk(state)
        with self._write_errors():
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_to_tree(state)), meta=ocp.args.JsonSave(meta)
                ),
                metrics=None if validation is None else {"validation": validation},
                force=True,
            )

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
          OSError: it could not be written; nothing of it is left.
        """
        with self._write_errors():
            self.manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the `meta` that was saved at `step`.

        Raises:
          ValueError: it cannot be read.
        """
        with self._read_errors(step):
            self._check_digests(step)
            return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def restore(self, step: int, like: TrainState, shardings: TrainState) -> TrainState:
        """Returns the state saved at `step`, sharded by `shardings`.

        Raises:
          ValueError: it cannot be read, or its parameters or shapes differ from those of `like`.
        """
        wanted = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like, shardings
        )
        with self._read_errors(step):
            self._check_digests(step)
            restored = self.manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_to_tree(wanted)))
            )
        return _from_tree(restored.state)

    def remove_after(self, step: int) -> None:
        """Removes checkpoints newer than `step`; the run is about to write them again."""
        for newer in [s for s in self.steps if s > step]:
            self.manager.delete(newer)

    def close(self) -> None:
        """Waits for pending writes and releases the folder."""
        with self._write_errors():
            self.manager.close()

    def _check_digests(self, step: int) -> None:
        if step not in self._checked:
            digests.check(self.folder / str(step))
            self._checked.add(step)

    def _check_disk(self, state: TrainState) -> None:
        """Refuses a full disk before writing: the libraries report it in many long messages."""
        need = sum(x.nbytes for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise OSError(f"a checkpoint takes {need >> 20} MiB and {self.folder} has {free >> 20} MiB left")

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as why:  # orbax and tensorstore raise many types, also for an earlier write
            reason = " ".join(str(why).split())
            raise OSError(f"a checkpoint could not be written to {self.folder}: {reason[-120:]}") from why

    @contextlib.contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, OSError) as why:
            older = [s for s in self.steps if s < step]
            advice = f"--step={older[-1]} resumes from the one before" if older else "there is no older one"
            reason = " ".join(str(why).split())[:120]
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} cannot be used ({reason}); {advice}"
            ) from why


def _to_tree(state: TrainState) -> dict[str, Any]:
    """The tree that orbax stores, where the optimizer state has the name that the first version gave it."""
    return {"step": state.step, "params": state.params, "moments": state.opt_state}


def _from_tree(tree: dict[str, Any]) -> TrainState:
    return TrainState(tree["step"], tree["params"], tree["moments"])
