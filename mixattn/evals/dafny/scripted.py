"""A verifier without a verifier, for tests of what is built on one. Its verdicts say "fake"."""

from collections.abc import Callable
from dataclasses import replace

from mixattn.evals.dafny.protocol import Verdict, Verification


class ScriptedVerifier:
    """A `Verify` whose verdict is `decide(program)`, a verdict's name or a whole `Verification`.

    `asked` keeps the programs in order of the calls.
    """

    def __init__(self, decide: Callable[[str], Verdict | Verification]):
        self._decide = decide
        self.asked: list[str] = []

    def __call__(self, program: str, *, flags: tuple[str, ...] = (), tries: int = 1) -> Verification:
        self.asked.append(program)
        said = self._decide(program)
        if isinstance(said, Verification):
            return replace(said, tries=tries)
        return Verification(said, n_verified=int(said == "verified"), tries=tries)
