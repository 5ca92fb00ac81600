"""What a verifier is: a function from a program's text to a `Verification`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

type Verdict = Literal["verified", "failed", "timeout", "parse", "resolve", "empty", "crash"]
VERDICTS: tuple[Verdict, ...] = ("verified", "failed", "timeout", "parse", "resolve", "empty", "crash")


UNSURE: tuple[Verdict, ...] = ("timeout", "crash")  # may be the machine's fault: tried once more, alone


@dataclass(frozen=True, slots=True)
class Problem:
    """One message of the verifier. `line` and `column` count from 1; 0 where the message has no place."""

    line: int
    column: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verifier said about one program.

    Attributes:
      verdict: "verified" needs at least one verified procedure; a program without any is "empty".
      n_verified: procedures that the summary line counts as verified.
      procedures: names of the procedures that were verified, without the verifier's prefixes.
      seconds, cpu_seconds: wall time, and processor time of the verifier with its solver.
      dafny, z3: versions. A scripted verifier says "fake" in `dafny`.
      output: everything printed, without temporary paths.
      tries: 2 when the program was verified once more, alone, after a time-out.
    """

    verdict: Verdict
    errors: tuple[Problem, ...] = ()
    n_verified: int = 0
    procedures: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    dafny: str = "fake"
    z3: str = ""
    output: str = ""
    tries: int = 1

    def public(self) -> dict[str, Any]:
        """The fields that commands print with `--json`."""
        fields = asdict(self)
        for name in ("output", "tries"):
            del fields[name]
        fields["seconds"] = round(self.seconds, 3)
        fields["cpu_seconds"] = round(self.cpu_seconds, 3)
        return fields


class Verify(Protocol):
    """A verifier: `verify(program)`. It never raises on what `program` holds."""

    def __call__(self, program: str, *, flags: tuple[str, ...] = (), tries: int = 1) -> Verification:
        """Verifies one program.

        Args:
          flags: further options of the verifier, e.g. ("/noCheating:1",).
          tries: 2 asks for a second, unhurried try: a remembered time-out of a first try does not count.

        Raises:
          VerifierGone: the verifier cannot be started any more.
        """


def settled(program: str, verify: Verify, flags: tuple[str, ...] = ()) -> Verification:
    """A verification whose time-out or crash was tried once more.

    Raises:
      VerifierGone: the verifier disappeared.
    """
    found = verify(program, flags=flags)
    again = found.verdict in UNSURE and found.tries < 2
    return verify(program, flags=flags, tries=2) if again else found


class VerifierGone(OSError):
    """There is no verifier, or it disappeared while in use."""


def located(verification: Verification, limit: int = 20) -> str:
    """The messages of a verification as text for a model or a person; never empty unless verified."""
    lines = [f"line {e.line}, column {e.column}: {e.message}" for e in verification.errors[:limit]]
    hidden = len(verification.errors) - limit
    lines += [f"... and {hidden} further messages"] * (hidden > 0)
    if verification.verdict == "timeout":
        lines.insert(0, "The verifier ran out of time before it could prove or refute the program.")
    if verification.verdict == "empty":
        lines.insert(0, "The program contains nothing to verify.")
    if verification.verdict == "crash":
        lines.insert(0, "The verifier itself failed on this program.")
    if not lines and verification.verdict != "verified":
        lines.append(f"The verifier's verdict is {verification.verdict!r} without a message.")
    return "\n".join(lines)
