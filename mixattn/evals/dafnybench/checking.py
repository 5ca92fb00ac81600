"""One solution against one task: for cheats first, then by the verifier."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mixattn.evals.dafny import official, strict
from mixattn.evals.dafny.dialect import rewrite
from mixattn.evals.dafny.protocol import Problem, Verdict, Verification, Verify, located, settled
from mixattn.evals.dafny.reading import Cheat

type Mode = Literal["strict", "official"]


@dataclass(frozen=True, slots=True)
class Task:
    """A program with its author's hints, and without: the question."""

    name: str
    original: str
    stripped: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found about one solution. `verdict` is "refused" where the verifier was not asked."""

    accepted: bool
    verdict: Verdict | Literal["refused"]
    cheats: tuple[Cheat, ...]
    errors: tuple[Problem, ...]
    n_verified: int
    seconds: float
    feedback: str = ""

    def public(self) -> dict[str, Any]:
        """The fields that commands print with `--json`."""
        fields = asdict(self)
        del fields["feedback"]
        fields["cheats"] = [cheat._asdict() for cheat in self.cheats]
        fields["seconds"] = round(self.seconds, 3)
        return fields


def check(task: Task, solution: str, verify: Verify, mode: Mode = "strict") -> Answer:
    """Whether `solution` is the task's program with hints, and verifies.

    Raises:
      VerifierGone: the verifier disappeared.
    """
    return _official(task, solution, verify) if mode == "official" else _strict(task, solution, verify)


def check_in_dialect(task: Task, solution: str, level: int, verify: Verify, mode: Mode = "strict") -> Answer:
    """The same for texts in words that the verifier does not know, which are rewritten at `level` for it.

    What was changed is looked for in the texts as they are: rewriting must not hide a word. It is looked for
    again in what is verified, so that rewriting cannot add one.

    Raises:
      VerifierGone: the verifier disappeared.
    """
    cheats = strict.cheats(task.original, task.stripped, solution) if mode == "strict" else ()
    if cheats:
        return Answer(False, "refused", cheats, (), 0, 0.0, _complaint(cheats))
    rewritten = Task(task.name, rewrite(task.original, level), rewrite(task.stripped, level))
    return check(rewritten, rewrite(solution, level), verify, mode)


def _official(task: Task, solution: str, verify: Verify) -> Answer:
    found = verify(solution)
    cheats = official.cheats(task.stripped, solution)
    good = official.verified(found.output) if found.output else found.verdict == "verified"
    return _answer(good and not cheats, found, cheats)


def _strict(task: Task, solution: str, verify: Verify) -> Answer:
    """Refused solutions are not handed to the verifier."""
    cheats = strict.cheats(task.original, task.stripped, solution)
    if cheats:
        return Answer(False, "refused", cheats, (), 0, 0.0, _complaint(cheats))
    found = settled(solution, verify)
    if found.verdict == "verified":
        cheats = (*_unverified(task, found, verify), *_believed(task, solution, verify))
    return _answer(found.verdict == "verified" and not cheats, found, cheats)


def _answer(accepted: bool, found: Verification, cheats: tuple[Cheat, ...]) -> Answer:
    feedback = "\n".join(part for part in (located(found), _complaint(cheats)) if part)
    return Answer(accepted, found.verdict, cheats, found.errors, found.n_verified, found.seconds, feedback)


def _unverified(task: Task, found: Verification, verify: Verify) -> tuple[Cheat, ...]:
    """Procedures of the original that were not among those verified."""
    if not found.procedures:
        return ()
    reference = verify(task.original)
    lost = sorted(set(reference.procedures) - set(found.procedures))
    return tuple(Cheat("not verified", 0, name) for name in lost)


def _believed(task: Task, solution: str, verify: Verify) -> tuple[Cheat, ...]:
    """Whether the verifier, told to believe nothing without proof, takes the program back.

    Not asked where the original itself does not pass that: it holds an axiom of its own.
    """
    honest = ("/noCheating:1",)
    if settled(solution, verify, honest).verdict == "verified":
        return ()
    if settled(task.original, verify, honest).verdict != "verified":
        return ()
    return (Cheat("believed without proof", 0, "fails with /noCheating:1"),)


def _complaint(cheats: tuple[Cheat, ...]) -> str:
    """What a model is told about what it may not do."""
    if not cheats:
        return ""
    lines = [f"line {cheat.line}: {cheat.rule}: {cheat.text}".rstrip(": ") for cheat in cheats[:10]]
    return "\n".join(["Only hints may be added; everything given must stay as it is.", *lines])
