"""Plans, simulates and runs mixture models larger than the memory they may use (MoE-Lightning).

    python -m serving.offload plan --model=mixtral-8x7b --hardware=l4 --prompt=77      how to run it
    python -m serving.offload simulate --gantt=gantt.svg                         schedules compared
    python -m serving.offload calibrate --checkpoint=DIR                       this machine's rates
    python -m serving.offload run --checkpoint=DIR --device_memory_gb=0.5 --requests=FILE --workdir=W
    python -m serving.offload bench --device_memory_gb=0.5 --json              speed, as ratios within one run

`--help` after a command lists its flags.
"""

import sys

from mixattn.tools.dispatch import dispatch

COMMANDS = ("plan", "simulate", "calibrate", "run", "bench")


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; exits with code 2 if there is none of that name."""
    dispatch(argv, __doc__, {name: f"serving.offload.commands.{name}" for name in COMMANDS})


if __name__ == "__main__":
    main(sys.argv)
