"""Do two bodies of one method print the same in its unit tests? Both run confined, without a network."""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from mixattn.evals.clover.annotations import Comparison
from mixattn.evals.clover.method import Method, program
from mixattn.evals.clover.refusals import unsafe
from mixattn.evals.dafny.process import run_confined
from mixattn.evals.dafny.protocol import VerifierGone
from mixattn.evals.dafny.tool import Tool, find, home
from mixattn.tools import files

NAME = "program.dfy"
MAX_OUTPUT_CHARS = 1 << 20
START = "Running...\n"  # the driver's last line before what the program prints


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """What a program printed, if it compiled and ended by itself; otherwise why not, in `output`."""

    ran: bool
    output: str


class RunProgram(Protocol):
    """Compiles and runs a program that has a `Main`. Never raises on what the program holds."""

    def __call__(self, program: str) -> ProgramRun: ...


@dataclass(frozen=True, slots=True)
class DafnyRunner:
    """Runs programs with Dafny, in memory and unverified; remembers on disk what each one printed.

    Args:
      wall_limit_s: limit for compiling and running.
      folder: of what is remembered; default: `outputs` in the verifier's home.
    """

    tool: Tool
    wall_limit_s: float = 60.0
    folder: Path | None = None

    def __call__(self, program: str) -> ProgramRun:
        key = json.dumps([program, self.command()[1:], self.tool.dafny_version, self.wall_limit_s])
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        path = (self.folder or home() / "outputs") / name[:2] / f"{name}.json"
        known = _read(path)
        if known is not None:
            return known
        found, timed_out = self._run(program)
        if not timed_out:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps(asdict(found)))
        return found

    def command(self) -> list[str]:
        """The command line. Dafny 4's was written from its manual, not run."""
        if self.tool.is_new:
            return [self.tool.dafny, "run", "--no-verify", NAME]
        return [self.tool.dafny, "/nologo", "/noVerify", "/compile:4", "/deprecation:0", NAME]

    def _run(self, program: str) -> tuple[ProgramRun, bool]:
        with tempfile.TemporaryDirectory(prefix="clover-") as name:
            folder = Path(name)
            (folder / NAME).write_text(program, encoding="utf-8", errors="replace", newline="")
            try:
                ended = run_confined(self.command(), folder, wall_limit_s=self.wall_limit_s)
            except FileNotFoundError as why:
                raise VerifierGone(f"the verifier is gone: {why}") from why
        if ended.timed_out:
            return ProgramRun(False, f"the program ran longer than {self.wall_limit_s:g} s"), True
        # Only Dafny 2.3 announces the program; Dafny 4 first says that it verified nothing.
        _, mark, printed = ended.output.partition("\n" if self.tool.is_new else START)
        if ended.exit_code != 0 or not mark:
            said = ended.output.replace(str(folder), "").strip()
            return ProgramRun(False, said[:2000] or f"exit code {ended.exit_code}"), False
        return ProgramRun(True, printed[:MAX_OUTPUT_CHARS]), False


def installed_runner() -> DafnyRunner:
    """The runner of this machine.

    Raises:
      VerifierGone: there is no Dafny.
    """
    return DafnyRunner(find())


def runnable(method: Method, tests: str) -> str:
    """The method without its annotation, and its tests, as one program.

    Raises:
      ValueError: the code holds something that is not run, or it or its tests are missing.
    """
    if not method.body:
        raise ValueError("the method has no body")
    if not tests.strip():
        raise ValueError("there are no unit tests")
    code = program(method.signature, (), method.code, method.others)
    refused = unsafe(code)
    if refused:
        raise ValueError(refused)
    return f"{code}\n{tests.strip()}\n"


def compare_outputs(run: RunProgram, method: Method, other: Method, tests: str) -> Comparison:
    """Compares what `method` and `other` print. Two programs that do not run are not equal.

    "malformed" says that `other` does not compile or end; "cannot say", that `method` does not.
    """
    try:
        first = run(runnable(method, tests))
    except ValueError as why:
        return Comparison("cannot say", f"the code under test is not run: {why}")
    if not first.ran:
        return Comparison("cannot say", f"the code under test does not run: {first.output}")
    try:
        second = run(runnable(other, tests))
    except ValueError as why:
        return Comparison("malformed", str(why))
    if not second.ran:
        return Comparison("malformed", second.output)
    same = first.output == second.output
    return Comparison("equal") if same else Comparison("different", _difference(first.output, second.output))


def _difference(first: str, second: str) -> str:
    for i, (a, b) in enumerate(zip(first.splitlines(), second.splitlines()), 1):
        if a != b:
            return f"line {i} of the tests' output is {a[:60]!r} against {b[:60]!r}"
    return "one of the outputs is longer"


def _read(path: Path) -> ProgramRun | None:
    try:
        return ProgramRun(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
