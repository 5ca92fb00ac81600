"""One way to show progress: live on a terminal, seldom lines elsewhere, nothing when quiet."""

import io

from rich.console import Console

from mixattn.tools import progress
from mixattn.tools.progress import ProgressLines


def shown(terminal: bool, quiet: bool = False, **more: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    with ProgressLines(quiet=quiet, console=console, **more) as lines:
        line = lines.add(5)
        for done in range(1, 6):
            line.update(done, f"step {done}/5 [bold]")
        lines.print("above [red]")
    return file.getvalue()


def test_without_a_terminal_the_first_and_the_last_words_are_printed():
    assert shown(False) == "step 1/5 [bold]\nstep 5/5 [bold]\nabove [red]\n"


def test_without_a_terminal_words_are_printed_once_per_interval(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    assert shown(False).count("step") == 5


def test_a_terminal_shows_the_last_words_and_what_is_printed_above():
    told = shown(True)
    assert "step 5/5 [bold]" in told
    assert "above [red]" in told


def test_quiet_is_quiet():
    assert shown(False, quiet=True) == shown(True, quiet=True) == ""
