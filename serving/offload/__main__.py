"""Plans and simulates mixture models larger than a device's memory (MoE-Lightning).

    python -m serving.offload plan --model=mixtral-8x7b --hardware=l4 --prompt=77      how to run it
    python -m serving.offload simulate --gantt=gantt.svg                         schedules compared
    python -m serving.offload calibrate --checkpoint=DIR                       this machine's rates

`--help` after a command lists its flags. `run` and `bench` are not built yet.
"""

import importlib
import sys

COMMANDS = ("plan", "simulate", "calibrate")


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; exits with code 2 if there is none of that name."""
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return
    if argv[1] not in COMMANDS:
        print(f"error: {argv[1]!r} is not one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    command = importlib.import_module(f"serving.offload.commands.{argv[1]}")
    command.start([f"{argv[0]} {argv[1]}", *argv[2:]])


if __name__ == "__main__":
    main(sys.argv)
