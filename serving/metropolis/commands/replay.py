"""Draws a town run as one HTML file: map, slider over commits, who runs, who waits for whom, who speaks."""

from pathlib import Path

from absl import flags

from mixattn.tools import cli
from serving.metropolis.commands.check import open_run
from serving.metropolis.runtime import replay_page

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("workdir", "runs/town", "A run's directory.")
    flags.DEFINE_string("out", "", "The file to write; WORKDIR/replay.html if empty.")
    cli.run(_main, argv)


def _main() -> None:
    store = open_run(FLAGS.workdir)
    out = Path(FLAGS.out or Path(FLAGS.workdir) / "replay.html")
    commits = replay_page.write(store, out)
    print(f"{out}: {commits} commits; open it in any browser")
