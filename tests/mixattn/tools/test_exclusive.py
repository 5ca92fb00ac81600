"""A file has one owner at a time, and the error names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixattn.tools.exclusive import open_exclusive

HOLD = """
import sys
from pathlib import Path
from mixattn.tools.exclusive import open_exclusive
with open_exclusive(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_owner_is_refused_until_the_first_closes(tmp_path):
    path = tmp_path / "lock"
    with open_exclusive(path, "busy"), pytest.raises(ValueError, match=r"^somebody works here"):
        open_exclusive(path, "somebody works here")
    open_exclusive(path, "busy").close()


def test_the_process_that_holds_the_lock_is_named_and_its_death_releases_it(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=r"^busy") as refused:
            open_exclusive(path, "busy")
        named = f"busy (process {other.pid} holds {path})"
        # Not every file system shows a lock under the numbers that `stat` tells.
        assert str(refused.value) in ("busy", named)
        other.kill()
        other.wait()
    open_exclusive(path, "busy").close()


def test_what_is_written_is_appended_to_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old\n")
    with open_exclusive(tmp_path / "a", "busy") as file:
        file.write(b"new\n")
    assert (tmp_path / "a").read_text() == "old\nnew\n"


def test_a_file_replaced_while_it_was_opened_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a"
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    with pytest.raises(ValueError, match=r"^busy$"):
        open_exclusive(path, "busy")
    monkeypatch.undo()
    open_exclusive(path, "busy").close()
