"""The entry point of every command: overrides by name, one sentence and an exit code on bad input."""

import sys
import textwrap
import time

import pytest

PROGRAM = """
from mixattn.tools import cli
cli.define_config()
def main():
    print(cli.config())
    {body}
if __name__ == "__main__":
    cli.run(main)
"""
CONFIG = """
from dataclasses import dataclass, field
@dataclass
class Inner:
    rate: float = 0.5
    def check(self):
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}; it cannot be negative")
@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = "x"
def get_config(variant=""):
    if variant == "none":
        raise ValueError("there is no variant 'none'")
    return Outer(name=variant or "plain")
"""


@pytest.fixture
def run(tmp_path):
    import os
    import subprocess

    (tmp_path / "config.py").write_text(CONFIG)

    def go(*args, body="pass", **env):
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(PROGRAM.format(body=body)))
        return subprocess.run(
            [sys.executable, program, *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.getcwd(), **env},
            check=False,
        )

    return go


def test_fields_are_overridden_by_name_and_variants_by_colon(run):
    done = run("--config=config.py:fast", "--config.inner.rate=2")
    assert done.returncode == 0, done.stderr
    assert "rate=2.0" in done.stdout
    assert "name='fast'" in done.stdout


@pytest.mark.parametrize(
    ("args", "body", "sentence"),
    [
        ([], "pass", "--config is missing"),
        (["--config=nowhere.py"], "pass", "nowhere.py"),
        (["--config=config.py", "--config.inner.rat=1"], "pass", "Field rat not found"),
        (["--config=config.py", "--config.inner.rate=-1"], "pass", "rate is -1.0; it cannot be negative"),
        (["--config=config.py"], "raise OSError('disk full')", "disk full"),
        (["--confog=config.py"], "pass", "Unknown command line flag 'confog'"),
        (["--config=config.py:none"], "pass", "no variant 'none'"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_nonzero_code(run, args, body, sentence):
    done = run(*args, body=body)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_bug_keeps_its_traceback_and_so_does_a_mistake_when_asked(run):
    assert "Traceback" in run("--config=config.py", body="raise RuntimeError('bug')").stderr
    asked = run("--config=config.py", body="raise ValueError('mistake')", MIXATTN_DEBUG="1")
    assert "Traceback" in asked.stderr


def test_ctrl_c_is_130_and_says_so(run):
    done = run("--config=config.py", body="raise KeyboardInterrupt")
    assert done.returncode == 130
    assert "stopped by Ctrl-C" in done.stderr


def test_ctrl_c_is_not_lost_in_the_garbage_collectors_callback(run):
    """Python swallows exceptions raised in a garbage-collector callback, such as jax's during tracing."""
    body = """
    import gc, signal, time
    calls = []
    def _xla_gc_callback(*_):
        if not calls:
            calls.append(signal.raise_signal(signal.SIGINT))
    gc.callbacks.append(_xla_gc_callback)
    gc.collect()
    assert calls
    time.sleep(60)
    """
    started = time.monotonic()
    done = run("--config=config.py", body=textwrap.indent(textwrap.dedent(body), "    "))
    assert done.returncode == 130, done.stderr
    assert time.monotonic() - started < 40, "the sleep went on to its end"
    assert "stopped by Ctrl-C" in done.stderr
