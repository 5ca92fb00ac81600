"""Plans and simulates mixture models larger than a device's memory (MoE-Lightning).

    python -m serving.offload plan --model=mixtral-8x7b --hardware=l4 --prompt=77      how to run it
    python -m serving.offload simulate --gantt=gantt.svg                         schedules compared
    python -m serving.offload calibrate --checkpoint=DIR                       this machine's rates

`--help` after a command lists its flags. `run` and `bench` are not built yet.
"""

import sys

from mixattn.tools.dispatch import dispatch

COMMANDS = ("plan", "simulate", "calibrate")


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; exits with code 2 if there is none of that name."""
    dispatch(argv, __doc__, {name: f"serving.offload.commands.{name}" for name in COMMANDS})


if __name__ == "__main__":
    main(sys.argv)
