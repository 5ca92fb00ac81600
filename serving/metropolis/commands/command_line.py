"""How every command here starts: its own flags, its docstring as `--help`, one sentence on bad input."""

import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from mixattn.tools import cli


def run(command: str, main: Callable[[], None], argv: list[str]) -> None:
    """Runs a command, or prints its help.

    Bad flags and bad input end with one sentence and exit code 2.

    Args:
      command: module that defined the flags; its docstring is the help.
      main: called after the flags are parsed.
      argv: program name and flags.
    """
    if {"-h", "--help"} & set(argv[1:]):
        print((sys.modules[command].__doc__ or "").strip(), flags.FLAGS.module_help(command), sep="\n\n")
    else:
        cli.run(main, argv)


def config[T](kind: type[T], example: str) -> T:
    """The config that `--config` names.

    Raises:
      ValueError: it is missing, wrong, or not a `kind`.
    """
    found: Any = cli.config()
    if not isinstance(found, kind):
        needs = f"this command needs {kind.__name__}, e.g. --config={example}"
        raise ValueError(f"--config gives {type(found).__name__}; {needs}")
    return found
