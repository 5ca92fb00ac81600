"""Our models behind the evaluations.

    python -m serving.evals demo --workdir=runs/arena     four settings of one model, judged and ranked
    python -m serving.evals exhibit                       what a small model is worth as a judge
    python -m serving.evals worker --model=DIR            the engine as a process that the arena starts

`--help` after a command lists its flags.
"""

import importlib
import sys

COMMANDS = ("demo", "exhibit", "worker")


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; exits with code 2 if there is none of that name."""
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print((__doc__ or "").strip())
        return
    if argv[1] not in COMMANDS:
        print(f"error: {argv[1]!r} is not one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(f"serving.evals.{argv[1]}").start([f"{argv[0]} {argv[1]}", *argv[2:]])


if __name__ == "__main__":
    main(sys.argv)
