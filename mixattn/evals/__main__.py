"""Measures models: what they answer, prove and win.

    python -m mixattn.evals arena --help                  rankings from votes, and the platform
    python -m mixattn.evals judge --help                  a language model as the judge of answers
    python -m mixattn.evals longcontext --help            what a KV budget costs on long contexts
    python -m mixattn.evals dafny install                 a verifier for Dafny programs
    python -m mixattn.evals dafny check FILE              verify one program
    python -m mixattn.evals dafnybench run --data=own     give programs their proof hints back
    python -m mixattn.evals clover run --model=oracle     do code, annotation and docstring say the same?

`--help` after a command lists its subcommands and flags.
"""

import importlib
import sys

COMMANDS = {
    "arena": "mixattn.evals.arena.commands",
    "judge": "mixattn.evals.judge.commands",
    "longcontext": "mixattn.evals.longcontext.command",
    "dafny": "mixattn.evals.dafny.command",
    "dafnybench": "mixattn.evals.dafnybench.command",
    "clover": "mixattn.evals.clover.command",
}


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; exits with code 2 if there is none of that name."""
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print((__doc__ or "").strip())
        return
    if argv[1] not in COMMANDS:
        print(f"error: {argv[1]!r} is not one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(COMMANDS[argv[1]]).start([f"{argv[0]} {argv[1]}", *argv[2:]])


if __name__ == "__main__":
    main(sys.argv)
