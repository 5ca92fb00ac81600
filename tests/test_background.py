"""The suite gives the same when a script starts it in the background, where Ctrl-C is ignored."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GRANDCHILD = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


@pytest.mark.parametrize(("first", "hears"), [("import tests.conftest", True), ("pass", False)])
def test_children_of_the_suite_hear_ctrl_c_although_the_shell_ignores_it(first, hears):
    """Without the suite's conftest they do not: that is what used to hang."""
    code = f"{first}\nimport subprocess, sys\nsubprocess.run([sys.executable, '-c', {GRANDCHILD!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.stdout.strip() == str(hears)
