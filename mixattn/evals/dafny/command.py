"""Verifies Dafny programs, and installs what that needs.

    python -m mixattn.evals dafny install                 Debian's Dafny 2.3 and the solver that it works with
    python -m mixattn.evals dafny check sum.dfy           prints the verdict and every error
    python -m mixattn.evals dafny check sum.dfy --json    the same as one JSON object

Verdicts: verified, failed, timeout, parse, resolve, empty, crash. "verified" means that every procedure was
proved and that there was at least one. Exit codes of `check`: 0 verified, 1 any other verdict, 2 no such file
or no verifier. A Dafny 4 on PATH is preferred to Debian's.
"""

import json
import sys

from absl import flags

from mixattn.evals.dafny import command_line, install
from mixattn.evals.dafny.protocol import Verification, located, settled
from mixattn.evals.dafny.verifier import Dafny, installed

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_integer(
        "time_limit", 20, "Seconds that the solver may spend on one procedure.", lower_bound=1
    )
    flags.DEFINE_float("wall_limit", 120.0, "Seconds after which the verifier is killed.", lower_bound=0.1)
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    flags.DEFINE_bool("cache", True, "Remember verdicts, by program, limits and versions.")
    command_line.run(__name__, {"install": _install, "check": _check}, argv)


def _install(_: str) -> None:
    tool = install.install(lambda line: print(line, file=sys.stderr))
    install.self_test(Dafny(tool))
    solver = tool.z3_version or "of its own"
    print(f"dafny {tool.dafny_version}, z3 {solver}: the self-test's five verdicts are right")


def _check(file: str) -> None:
    program = command_line.read_program(file)
    verify = installed(FLAGS.time_limit, FLAGS.wall_limit, remember=FLAGS.cache)
    found = settled(program, verify)
    print(json.dumps(found.public()) if FLAGS.json else _lines(found))
    sys.exit(0 if found.verdict == "verified" else 1)


def _lines(found: Verification) -> str:
    count = f"{found.n_verified} procedure{'s' * (found.n_verified != 1)} verified, {found.seconds:.1f} s"
    return "\n".join([f"{found.verdict}: {count}", *located(found).splitlines()])
