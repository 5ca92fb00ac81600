"""The suite gives the same when a script starts it in the background, where Ctrl-C is ignored."""

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
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(ignoring, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(hears)
