"""Installs a verifier that works: Debian's Dafny with the solver of its time, which Debian does not ship.

Debian's own z3 4.8.12 refuses an option that Dafny 2.3 sets, and then hangs on multiplication. The wheel of
z3-solver 4.8.5.0 carries a solver that works; it is unpacked beside everything else, not installed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mixattn.evals.dafny.protocol import Verdict, VerifierGone, Verify
from mixattn.evals.dafny.tool import Tool, dafny_version, find, home, solver

SOLVER = "z3-solver==4.8.5.0"
_LOOP = """function Sum(n: nat): nat { if n == 0 then 0 else n + Sum(n - 1) }
method Total(n: nat) returns (s: nat) ensures s == Sum(n)
{ var i := 0; s := 0; while i < n %s { i := i + 1; s := s + i; } }
"""
SELF_TEST: tuple[tuple[str, str, Verdict], ...] = (
    ("a loop with its invariant", _LOOP % "invariant 0 <= i <= n && s == Sum(i)", "verified"),
    ("a loop without its invariant", _LOOP % "", "failed"),
    ("a wrong postcondition", "method M(x: int) returns (y: int) ensures y > x { y := x; }", "failed"),
    ("a parameter list that does not end", "method M(x: int { }", "parse"),
    ("a function that does not exist", "method M(x: int) ensures Missing(x) { }", "resolve"),
)


def install(say: Callable[[str], None]) -> Tool:
    """Installs what is missing; does nothing, quickly, if nothing is.

    Raises:
      VerifierGone: it cannot be installed here.
    """
    dafny = shutil.which("dafny")
    if dafny is None:
        _apt(say)
        dafny = shutil.which("dafny")
        if dafny is None:
            raise VerifierGone("apt-get installed dafny, but there is none on PATH")
    if int(dafny_version(dafny).split(".")[0]) < 4 and not solver().exists():
        say(f"unpacking {SOLVER} into {home() / 'z3'} (19 MB)")
        _unpack_solver()
    find.cache_clear()
    return find()


def self_test(verify: Verify) -> None:
    """Five small programs must get the verdicts that they deserve.

    Raises:
      ValueError: one did not; the sentence says which and what to look at.
    """
    with ThreadPoolExecutor(len(SELF_TEST)) as threads:
        found = list(threads.map(lambda test: verify(test[1]), SELF_TEST))
    for (name, _, expected), verification in zip(SELF_TEST, found, strict=True):
        if verification.verdict != expected:
            raise ValueError(
                f"the verifier's self-test failed: {name} is {verification.verdict}, not {expected}"
                f" (dafny {verification.dafny}, z3 {verification.z3 or 'its own'});"
                f" Dafny 2.3 needs the solver of {SOLVER}: remove {home() / 'z3'} and install again"
            )


def _apt(say: Callable[[str], None]) -> None:
    if shutil.which("apt-get") is None:
        raise VerifierGone("there is no dafny and no apt-get to install it with; put a Dafny 4 on PATH")
    if os.geteuid() != 0:
        raise VerifierGone(
            "installing Debian's dafny needs root, and this is not root;"
            " run `apt-get install dafny` as root, or put a Dafny 4 on PATH"
        )
    say("installing Debian's dafny (19 MB)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    order = ["apt-get", "install", "--yes", "--no-install-recommends", "dafny"]
    if _run(order, environment):
        _run(["apt-get", "update"], environment)
        why = _run(order, environment)
        if why:
            raise VerifierGone(f"apt-get could not install dafny: {why}")


def _unpack_solver() -> None:
    target, draft = home() / "z3", home() / f".z3.{os.getpid()}"
    home().mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        why = _run([*pip, "--no-deps", "--target", str(draft), SOLVER], dict(os.environ))
        if why or not (draft / "bin" / "z3").exists():
            raise VerifierGone(f"pip could not unpack {SOLVER} (x86-64 Linux only): {why or 'no bin/z3'}")
        (draft / "bin" / "z3").chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Empty if the command succeeded, else its last words."""
    ran = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment
    )
    said = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    return "" if ran.returncode == 0 else (said[-1] if said else f"exit code {ran.returncode}")
