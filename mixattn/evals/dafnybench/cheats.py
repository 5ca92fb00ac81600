"""Ways to make a verifier say yes, each a whole program; and honest solutions: under both checks."""

from collections.abc import Iterator
from typing import Any

from mixattn.evals.dafny import official, strict
from mixattn.evals.dafny.pool import verify_all
from mixattn.evals.dafny.protocol import Verify
from mixattn.evals.dafnybench import cheats_by_program, cheats_by_proof
from mixattn.evals.dafnybench.cheat_task import SOLUTION, TASK
from mixattn.evals.dafnybench.honest import HONEST

CHEATS = cheats_by_proof.CHEATS | cheats_by_program.CHEATS


def judged(verify: Verify, workers: int = 0) -> Iterator[dict[str, Any]]:
    """A row for each program: whether the verifier, the public check with it, and ours let it pass."""
    lists = {"cheat": CHEATS, "honest": HONEST}
    programs = [(f"{kind} {name}", program) for kind, part in lists.items() for name, program in part.items()]
    for label, found in verify_all(programs, verify, workers):
        kind, _, name = label.partition(" ")
        program = lists[kind][name]
        public = official.verified(found.output) and not official.cheats(TASK, program)
        refused = strict.cheats(SOLUTION, TASK, program)
        yield {
            "kind": kind,
            "name": name,
            "verifier": found.verdict,
            "exit_0": found.verdict in ("verified", "empty"),
            "public_check_accepts": public,
            "ours_accepts": not refused and found.verdict == "verified",
            "our_reason": refused[0].rule if refused else "",
        }
