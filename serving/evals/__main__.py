"""Our models behind the evaluations.

    python -m serving.evals demo --workdir=runs/arena     four settings of one model, judged and ranked
    python -m serving.evals exhibit                       what a small model is worth as a judge
    python -m serving.evals longcontext --checkpoint=DIR  the long-context suite as requests of the engine
    python -m serving.evals worker --model=DIR            the engine as a process that the arena starts
    python -m serving.evals harness                       lm-evaluation-harness under budgets of keys

`--help` after a command lists its flags.
"""

import sys

from mixattn.tools.dispatch import dispatch

COMMANDS = {name: f"serving.evals.{name}" for name in ("demo", "exhibit", "longcontext", "worker")}
COMMANDS["harness"] = "serving.evals.harness.command"


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; exits with code 2 if there is none of that name."""
    dispatch(argv, __doc__, COMMANDS)


if __name__ == "__main__":
    main(sys.argv)
