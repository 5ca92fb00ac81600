"""How every command here starts: its own flags, its docstring as `--help`, one sentence on bad input."""

import dataclasses
import sys
from collections.abc import Callable

from absl import flags

from mixattn.tools import cli
from serving.offload.hardware import GIB, HARDWARE, OffloadHardware, hardware
from serving.offload.plan import OffloadPlanner, OffloadWorkload
from serving.offload.shapes import MODELS, MixtureShape, named_model

FLAGS = flags.FLAGS


def run(command: str, main: Callable[[], None], argv: list[str]) -> None:
    """Runs a command, or prints its help: the docstring of the module that defined the flags."""
    if {"-h", "--help"} & set(argv[1:]):
        print((sys.modules[command].__doc__ or "").strip(), flags.FLAGS.module_help(command), sep="\n\n")
    else:
        cli.run(main, argv)


def define_planner(module: str) -> None:
    """Declares the flags that describe model, machine and workload, as `module`'s."""

    def text(name: str, default: str, help_: str) -> None:
        flags.DEFINE_string(name, default, help_, module_name=module)

    text("model", "mixtral-8x7b", f"One of {', '.join(MODELS)}.")
    text("hardware", "l4", f"One of {', '.join(HARDWARE)}.")
    flags.DEFINE_integer(
        "prompt", 77, "Prompt tokens: the mean, or the maximum if padded.", module_name=module
    )
    flags.DEFINE_integer("generate", 32, "Generated tokens of each request.", module_name=module)
    flags.DEFINE_float(
        "device_memory_gb", None, "Device memory in GiB, instead of the preset's.", module_name=module
    )
    flags.DEFINE_float(
        "host_memory_gb", None, "Host memory in GiB, instead of the preset's.", module_name=module
    )
    flags.DEFINE_integer(
        "kv_budget", None, "Keys that a layer keeps of a sequence at most (H2O).", module_name=module
    )
    for part in ("device", "host", "link"):
        flags.DEFINE_float(
            f"efficiency_{part}",
            1.0,
            f"Share of the {part}'s peak rates that is reached.",
            module_name=module,
        )


def machine() -> OffloadHardware:
    """The machine that the flags describe.

    Raises:
      ValueError: an unknown preset, or a size or share out of range.
    """
    found = hardware(FLAGS.hardware).efficiency(
        device=FLAGS.efficiency_device, host=FLAGS.efficiency_host, link=FLAGS.efficiency_link
    )
    if FLAGS.device_memory_gb is not None:
        found = dataclasses.replace(found, device_bytes=FLAGS.device_memory_gb * GIB)
    if FLAGS.host_memory_gb is not None:
        found = dataclasses.replace(found, host_bytes=FLAGS.host_memory_gb * GIB)
    return found


def planner() -> OffloadPlanner:
    """The planner that the flags describe.

    Raises:
      ValueError: bad flags, with the two facts that disagree.
    """
    if FLAGS.kv_budget is not None and FLAGS.kv_budget < 1:
        raise ValueError(f"--kv_budget is {FLAGS.kv_budget}; a layer keeps at least 1 key")
    shape = MixtureShape(named_model(FLAGS.model), FLAGS.kv_budget)
    return OffloadPlanner(shape, machine(), OffloadWorkload(FLAGS.prompt, FLAGS.generate))
