"""Checkpoints by orbax: asynchronous, atomic, the newest n and the best one kept, movable to another mesh.

A checkpoint is whole or it is not there: orbax writes under a temporary name and renames. One that was
damaged afterwards is refused in one sentence; an older one is used only when a user names it.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from train.step import TrainState

type Hook = Callable[[Any], Any]


def without_late_answers(hook: Hook) -> Hook:
    """`hook`, for `sys.unraisablehook`, but deaf to what tensorstore's threads say after a write that failed.

    They answer an event loop that orbax has closed by then; why it failed is raised by `Checkpoints`.
    """

    def heard(unraisable) -> None:
        why = unraisable.exc_value
        if not (isinstance(why, RuntimeError) and str(why) == "Event loop is closed"):
            hook(unraisable)

    return heard


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: is made.
      keep_last: newest checkpoints kept.
      keep_best: checkpoints of lowest validation loss kept besides.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_best: int = 1):
        self.folder = folder
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
            options=ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True),
        )

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, oldest first."""
        return sorted(self.manager.all_steps())

    def save(
        self, step: int, state: TrainState, meta: dict[str, Any], validation: float | None = None
    ) -> None:
        """Copies `state` away and returns; writing goes on in the background.

        Args:
          step: over all stages.
          meta: JSON: where the data, the clock and the stages stand.
          validation: loss in nats, if one was measured at this step.

        Raises:
          OSError: this one or the one before could not be written.
        """
        self._refuse_full_disk(state)
        with self._unwritten():
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave(meta)
                ),
                metrics=None if validation is None else {"validation": validation},
                force=True,
            )

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
          OSError: it could not be written; nothing of it is left.
        """
        with self._unwritten():
            self.manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the state.

        Raises:
          ValueError: it cannot be read.
        """
        with self._damaged(step):
            return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def restore(self, step: int, like: TrainState, shardings: TrainState) -> TrainState:
        """The state saved at `step`, laid out as `shardings` says.

        Raises:
          ValueError: it cannot be read, or has other parameters or shapes than `like`.
        """
        wanted = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like, shardings
        )
        with self._damaged(step):
            restored = self.manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted._asdict()))
            )
        return TrainState(**restored.state)

    def forget_after(self, step: int) -> None:
        """Removes checkpoints newer than `step`: the run is about to make them again."""
        for newer in [s for s in self.steps if s > step]:
            self.manager.delete(newer)

    def close(self) -> None:
        """Waits for what is being written, and lets go of the folder."""
        with self._unwritten():
            self.manager.close()

    def _refuse_full_disk(self, state: TrainState) -> None:
        """Asks before writing: the libraries' own words for a full disk are long and many."""
        need = sum(x.nbytes for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise OSError(f"a checkpoint takes {need >> 20} MiB and {self.folder} has {free >> 20} MiB left")

    @contextlib.contextmanager
    def _unwritten(self):
        try:
            yield
        except Exception as why:  # orbax and tensorstore raise what they like, for a write begun earlier too
            reason = " ".join(str(why).split())
            raise OSError(f"a checkpoint could not be written to {self.folder}: {reason[-120:]}") from why

    @contextlib.contextmanager
    def _damaged(self, step: int):
        try:
            yield
        except (ValueError, KeyError, TypeError, OSError) as why:
            older = [s for s in self.steps if s < step]
            advice = f"--step={older[-1]} goes on from the one before" if older else "there is no older one"
            reason = " ".join(str(why).split())[:120]
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} cannot be used ({reason}); {advice}"
            ) from why
