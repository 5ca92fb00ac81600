"""Audits the commit log of a run of any world: could lock-step have produced it?

    python -m serving.metropolis check --workdir=runs/town

The audit shares no code with the scheduler. It needs one of the metrics of `Grid`.
"""

from pathlib import Path

from absl import flags

from serving.metropolis.commands import command_line
from serving.metropolis.runtime.audit import Violation, audit
from serving.metropolis.runtime.recovery import bodies_at_start
from serving.metropolis.runtime.store import SqliteStore
from serving.metropolis.schedule.space import METRICS
from serving.metropolis.town import make_town

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("workdir", "runs/town", "The directory of the run.")
    command_line.run(__name__, _main, argv)


def open_run(workdir: str) -> SqliteStore:
    """Opens the store of a run.

    Raises:
      ValueError: there is none.
    """
    path = Path(workdir) / "run.db"
    if not path.exists():
        raise ValueError(f"{path} does not exist; make it with: python -m serving.metropolis run")
    return SqliteStore(path)


def _main() -> None:
    store = open_run(FLAGS.workdir)
    about = store.about()
    if "start" in about:
        bodies, metric = bodies_at_start(about), about["metric"]
    elif "residents" in about:  # a town of an older version
        bodies, metric = dict(make_town(about["residents"])[0].reset(about["seed"])), "chebyshev"
    else:
        raise ValueError(f"{FLAGS.workdir}/run.db does not say where its agents start: nothing was run yet")
    if metric not in METRICS:
        raise ValueError("this world has a space of its own; call audit() with its distance instead")
    options = {"barriers": about.get("barriers", ()), "versioned": about.get("versioned", False)}
    try:
        steps = audit(store.commits(), bodies, METRICS[metric], **options)
    except Violation as why:
        raise ValueError(f"lock-step could not have produced this log: {why}") from why
    print(f"{steps} agent-steps: every view, move and write is as in lock-step")
