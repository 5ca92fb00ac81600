"""How the commands on Dafny programs start: a subcommand, at most one file, flags."""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from absl import flags
from rich.console import Console

from mixattn.tools import cli
from mixattn.tools.progress import ProgressLines

MAX_FILE_BYTES = 4 << 20


def run(module: str, subcommands: dict[str, Callable[[str], None]], argv: list[str]) -> None:
    """Runs `subcommands[argv[1]](file)`; `file` is the word that is not a flag, or empty.

    Args:
      module: its docstring is the help, and it defined the flags.
    """
    if len(argv) < 2 or {"-h", "--help", "help"} & set(argv[1:]):
        print((sys.modules[module].__doc__ or "").strip(), flags.FLAGS.module_help(module), sep="\n\n")
        return
    if argv[1] not in subcommands:
        print(f"error: {argv[1]!r} is not one of {', '.join(subcommands)}", file=sys.stderr)
        sys.exit(2)
    words = [word for word in argv[2:] if not word.startswith("-")]
    file = words[0] if words else ""
    rest = [word for word in argv[2:] if word.startswith("-")] + words[1:]
    cli.run(lambda: subcommands[argv[1]](file), [f"{argv[0]} {argv[1]}", *rest])


def read_program(path: str, what: str = "FILE") -> str:
    """The text of a program; a byte-order mark is dropped.

    Raises:
      ValueError: no path, too long, or not text.
      OSError: it cannot be read.
    """
    if not path:
        raise ValueError(f"{what} is missing; name a Dafny program, e.g. sum.dfy")
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a folder, not a Dafny program")
    if not file.exists():
        raise ValueError(f"{path} does not exist")
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {size} bytes; a program has at most {MAX_FILE_BYTES}")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as why:
        raise ValueError(
            f"{path} is not a text in UTF-8: byte {why.start} is {file.read_bytes()[why.start]:#04x}"
        ) from why


def followed[T](items: Iterable[T], total: int, words: Callable[[int, T], str]) -> Iterator[T]:
    """The items, with a line of progress on standard error behind each."""
    with ProgressLines(console=Console(stderr=True, highlight=False), transient=True) as lines:
        line = lines.add(total)
        for n, item in enumerate(items, 1):
            line.update(n, words(n, item))
            yield item
