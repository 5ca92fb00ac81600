"""The real verifier: Dafny as a confined process, one program a run."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mixattn.evals.dafny import report
from mixattn.evals.dafny.cache import Remember
from mixattn.evals.dafny.process import Finished, run_confined
from mixattn.evals.dafny.protocol import Verification, VerifierGone, Verify
from mixattn.evals.dafny.tool import Tool, find

MAX_PROGRAM_CHARS = 1 << 20
NAME = "program.dfy"


@dataclass(frozen=True, slots=True)
class Dafny:
    """A `Verify`.

    Args:
      time_limit_s: the solver's limit for each procedure.
      wall_limit_s: limit for the whole program; then the verifier and its solver are killed.
    """

    tool: Tool
    time_limit_s: int = 20
    wall_limit_s: float = 120.0

    def __call__(self, program: str, *, flags: tuple[str, ...] = (), tries: int = 1) -> Verification:
        refused = _refused(program)
        if refused:
            return self._verification(Finished(2, refused, 0.0, 0.0, False), {}, tries)
        with tempfile.TemporaryDirectory(prefix="dafny-") as name:
            folder = Path(name)
            (folder / NAME).write_text(program, encoding="utf-8", newline="")
            try:
                ran = run_confined(self.command(flags), folder, wall_limit_s=self.wall_limit_s)
            except FileNotFoundError as why:
                raise VerifierGone(f"the verifier is gone: {why}") from why
            outcomes = self._outcomes(folder)
            return self._verification(ran._replace(output=_masked(ran.output, folder)), outcomes, tries)

    def _outcomes(self, folder: Path) -> dict[str, bool]:
        if self.tool.is_new:
            return report.logged_procedures(folder / "outcomes.csv")
        return report.procedures(folder / "outcomes.xml")

    def command(self, flags: tuple[str, ...] = ()) -> list[str]:
        """The command line, in the private folder. Dafny 4's was written from its manual, not run."""
        if self.tool.is_new:
            limits = ["--cores", "1", "--verification-time-limit", str(self.time_limit_s)]
            log = ["--log-format", "csv;LogFileName=outcomes.csv"]
            return [self.tool.dafny, "verify", *limits, *log, *_translated(flags), NAME]
        options = ["/nologo", "/compile:0", "/deprecation:0", "/vcsCores:1", "/xml:outcomes.xml"]
        options += [f"/timeLimit:{self.time_limit_s}", f"/z3exe:{self.tool.z3}"]
        return [self.tool.dafny, *options, *flags, NAME]

    def settings(self) -> str:
        """Everything that a verdict depends on, besides the program."""
        tool = f"dafny {self.tool.dafny_version} z3 {self.tool.z3_version}"
        return f"{tool} {self.command()[1:]} wall {self.wall_limit_s}"

    def _verification(self, ran: Finished, outcomes: dict[str, bool], tries: int) -> Verification:
        verdict = "timeout" if ran.timed_out else report.verdict(ran.exit_code, ran.output)
        counts = report.summary(ran.output)
        return Verification(
            verdict=verdict,
            errors=report.problems(ran.output) if verdict != "verified" else (),
            n_verified=counts.n_verified if counts else 0,
            procedures=tuple(sorted(name for name, good in outcomes.items() if good)),
            seconds=ran.seconds,
            cpu_seconds=ran.cpu_seconds,
            dafny=self.tool.dafny_version,
            z3=self.tool.z3_version,
            output=ran.output[: report.MAX_OUTPUT_CHARS],
            tries=tries,
        )


def installed(time_limit_s: int = 20, wall_limit_s: float = 120.0, *, remember: bool = True) -> Verify:
    """The verifier of this machine, with its verdicts remembered between runs.

    Raises:
      VerifierGone: there is none.
    """
    dafny = Dafny(find(), time_limit_s, wall_limit_s)
    return Remember(dafny, dafny.settings()) if remember else dafny


def _refused(program: str) -> str:
    """Output in Dafny's form for a text that is not handed to it; empty if it is."""
    if len(program) > MAX_PROGRAM_CHARS:
        why = f"the program has {len(program)} characters; at most {MAX_PROGRAM_CHARS} are read"
    elif "\0" in program:
        why = "the program contains a NUL character"
    elif not program.isascii() and program.encode("utf-8", "replace") != program.encode(
        "utf-8", "surrogatepass"
    ):
        why = "the program contains a lone surrogate, which is not a character"
    elif _depth(program) > MAX_DEPTH:
        why = f"brackets are nested more than {MAX_DEPTH} deep"
    else:
        return ""
    return f"{NAME}(1,1): Error: {why}\n1 parse errors detected in {NAME}"


MAX_DEPTH = 500  # Dafny's parser is recursive and dies at some thousands


def _depth(program: str) -> int:
    """How deep brackets nest, comments and strings included: a bound, not a reading."""
    depth = deepest = 0
    for found in re.finditer(r"[(\[{]|[)\]}]", program):
        depth = depth + 1 if found[0] in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _masked(output: str, folder: Path) -> str:
    return output.replace(f"{folder}/", "").replace(str(folder), "")


def _translated(flags: tuple[str, ...]) -> list[str]:
    """Options of Dafny 2.3 in Dafny 4's spelling."""
    return ["--allow-axioms=false" if flag == "/noCheating:1" else flag for flag in flags]
