"""Audits the commit log of a town run: could lock-step have done this?"""

from pathlib import Path

from absl import flags

from mixattn.tools import cli
from serving.metropolis.runtime.audit import Violation, audit
from serving.metropolis.runtime.store import SqliteStore
from serving.metropolis.schedule.space import chebyshev
from serving.metropolis.town import make_town

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("workdir", "runs/town", "A run's directory.")
    cli.run(_main, argv)


def open_run(workdir: str) -> SqliteStore:
    """The store of a run; ValueError if there is none."""
    path = Path(workdir) / "run.db"
    if not path.exists():
        raise ValueError(f"{path} does not exist; make it with: python -m serving.metropolis run")
    return SqliteStore(path)


def _main() -> None:
    store = open_run(FLAGS.workdir)
    about = store.about()
    world, _ = make_town(about["residents"])
    try:
        steps = audit(store.commits(), world.reset(about["seed"]), chebyshev)
    except Violation as why:
        raise ValueError(f"the log breaks the law: {why}") from why
    print(f"{steps} agent-steps: every view, move and write is where lock-step would have it")
