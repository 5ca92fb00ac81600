"""Finds the verifier and its solver: a Dafny 4 on PATH, or Debian's 2.3 with a solver it works with."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mixattn.evals.dafny.protocol import VerifierGone

HOW_TO_INSTALL = "install it with: python -m mixattn.evals dafny install"


@dataclass(frozen=True, slots=True)
class Tool:
    """An installed verifier. `z3` is empty where Dafny brings its own solver."""

    dafny: str
    dafny_version: str
    z3: str
    z3_version: str

    @property
    def is_new(self) -> bool:
        """Whether it has subcommands (`dafny verify`), and a `function` is compiled by default: Dafny 4."""
        return int(self.dafny_version.split(".")[0]) >= 4


def home() -> Path:
    """Where the solver and the remembered verdicts lie: MIXATTN_DAFNY_HOME, or the user's cache."""
    told = os.environ.get("MIXATTN_DAFNY_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(told) if told else cache / "mixattn" / "dafny"


def solver() -> Path:
    return home() / "z3" / "bin" / "z3"


@functools.cache
def find() -> Tool:
    """The verifier of this machine.

    Raises:
      VerifierGone: there is none, or its solver is missing; the sentence says how to install it.
    """
    dafny = shutil.which("dafny")
    if dafny is None:
        raise VerifierGone(f"no dafny on PATH; {HOW_TO_INSTALL}")
    version = dafny_version(dafny)
    if int(version.split(".")[0]) >= 4:
        return Tool(dafny, version, "", "")
    if not solver().exists():
        raise VerifierGone(f"dafny {version} has no solver that it works with; {HOW_TO_INSTALL}")
    return Tool(dafny, version, str(solver()), z3_version(solver()))


def dafny_version(dafny: str) -> str:
    """E.g. "2.3.0.10506" or "4.3.0".

    Raises:
      VerifierGone: the program prints no version.
    """
    number = re.compile(r"^(?:Dafny )?(\d+\.\d+(?:\.\d+)*)", re.MULTILINE)
    printed = _printed([dafny, "--version"])
    found = number.search(printed)
    if found is None:  # 2.3 does not know the option, but introduces itself before it misses a file
        found = number.search(_printed([dafny, "/compile:0", "no-such-file.dfy"]))
    if found is None:
        raise VerifierGone(f"{dafny} says no version: {printed.strip()[:80]!r}")
    return found[1]


def z3_version(z3: Path) -> str:
    """E.g. "4.8.5".

    Raises:
      VerifierGone: the program prints no version.
    """
    printed = _printed([str(z3), "--version"])
    found = re.search(r"(\d+\.\d+\.\d+)", printed)
    if found is None:
        raise VerifierGone(f"{z3} says no version: {printed.strip()[:80]!r}")
    return found[1]


def _printed(command: list[str]) -> str:
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        raise VerifierGone(f"{command[0]} does not start: {why}") from why
    return run.stdout + run.stderr
