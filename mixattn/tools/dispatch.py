"""Commands with subcommands: the first argument names a module, whose `start(argv)` is called.

Modules are imported when they are named, so that help and mistakes answer at once.
"""

import importlib
import sys
from collections.abc import Mapping


def named_module(argv: list[str], doc: str | None, modules: Mapping[str, str]) -> str | None:
    """The module of the subcommand that the first argument names; None if it asked for `doc`, now printed.

    Exits with code 2 if there is no subcommand of that name.

    Args:
      modules: subcommand -> module.
    """
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print((doc or "").strip())
        return None
    if argv[1] not in modules:
        print(f"error: {argv[1]!r} is not one of {', '.join(modules)}", file=sys.stderr)
        sys.exit(2)
    return modules[argv[1]]


def dispatch(argv: list[str], doc: str | None, modules: Mapping[str, str]) -> None:
    """Runs the subcommand that the first argument names; see `named_module`."""
    if (name := named_module(argv, doc, modules)) is not None:
        importlib.import_module(name).start(rest(argv))


def rest(argv: list[str]) -> list[str]:
    """The arguments of the subcommand, behind a program name that includes it."""
    return [f"{argv[0]} {argv[1]}", *argv[2:]]
