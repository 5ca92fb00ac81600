"""What the commands of `mixattn.evals` share: help, one JSON object on stdout, tables."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from mixattn.tools import cli


def run(command: str, main: Callable[[], None], argv: list[str], shared: Sequence[str] = ()) -> None:
    """Runs a command, or prints its help: docstring and flags of module `command`, flags of `shared`."""
    if {"-h", "--help"} & set(argv[1:]):
        help_texts = map(flags.FLAGS.module_help, (command, *shared))
        print((sys.modules[command].__doc__ or "").strip(), *help_texts, sep="\n\n")
    else:
        cli.run(main, argv)


def needed(name: str, example: str) -> str:
    """The value of a flag that must be given.

    Raises:
      ValueError: it is missing.
    """
    value = flags.FLAGS[name].value
    if not value:
        raise ValueError(f"--{name} is missing, e.g. --{name}={example}")
    return str(value)


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object; numbers that are not finite are null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry; the first is flush left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )
