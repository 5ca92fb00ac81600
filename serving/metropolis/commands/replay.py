"""Draws a run of any world in the plane as one HTML page: map, slider over commits, who runs, waits, speaks.

python -m serving.metropolis replay --workdir=runs/town
"""

from pathlib import Path

from absl import flags

from serving.metropolis.commands import command_line
from serving.metropolis.commands.check import open_run
from serving.metropolis.runtime import replay_page

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("workdir", "runs/town", "The directory of the run.")
    flags.DEFINE_string("out", "", "The HTML file to write; WORKDIR/replay.html if empty.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    store = open_run(FLAGS.workdir)
    out = Path(FLAGS.out or Path(FLAGS.workdir) / "replay.html")
    commits = replay_page.write(store, out)
    print(f"{out}: {commits} commits; open it in any browser")
