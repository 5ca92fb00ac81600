"""One way into every command: `--config=FILE.py`, overrides by name, one clear sentence on bad input.

A config file defines `get_config()` (or `get_config(variant)` for `--config=FILE.py:variant`) and returns a
plain dataclass. Dataclasses that can be wrong define `check()`, which raises ValueError with the two facts
that disagree; it is called once more here, after the overrides.
"""

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

if TYPE_CHECKING:
    from mixattn.spec import ModelConfig


def define_config(default: str | None = None) -> None:
    """Declares `--config`; read it with `config()` inside main."""
    config_flags.DEFINE_config_file("config", default, "The experiment, e.g. configs/demo.py")


def config() -> Any:
    """The parsed and checked config dataclass.

    Raises:
      ValueError: no config was named, or a `check()` refuses it.
    """
    value = flags.FLAGS.config
    if value is None:
        raise ValueError("--config is missing; name an experiment, e.g. --config=configs/demo.py")
    if not dataclasses.is_dataclass(value):
        try:
            value.explain  # noqa: B018  the placeholder that stands for an unreadable file raises why
        except Exception as why:
            raise ValueError(f"--config could not be read: {why}") from why
        raise ValueError(f"get_config() of --config returned {type(value).__name__}, not a dataclass")
    check_tree(value)
    return value


def model_config() -> "ModelConfig":
    """The model of `--config`: itself, or its field `model`.

    Raises:
      ValueError: it has none, or `config` refuses it.
    """
    from mixattn.spec import ModelConfig  # numpy with it, which not every command needs

    value = config()
    value = getattr(value, "model", value)
    if not isinstance(value, ModelConfig):
        raise ValueError(
            f"--config holds a {type(value).__name__}, neither a ModelConfig nor something with .model"
        )
    return value


def check_tree(node: Any) -> None:
    """Calls `check()` on every dataclass of the tree, leaves first."""
    for field in dataclasses.fields(node):
        child = getattr(node, field.name)
        if dataclasses.is_dataclass(child):
            check_tree(child)
    if hasattr(node, "check"):
        node.check()


def run(main: Callable[[], None], argv: list[str] | None = None) -> None:
    """Parses flags, runs `main`, and turns a user's mistake into one sentence and exit code 2.

    Ctrl-C exits with 130. MIXATTN_DEBUG=1 in the environment keeps tracebacks. In `argv`, the arguments of a
    subcommand, anything that is not a flag is a mistake.
    """

    def start(rest: list[str]) -> None:
        if argv is not None and len(rest) > 1:
            _fail(ValueError(f"unexpected argument {rest[1]!r}; flags start with --"))
        _guarded(main)

    app.run(start, argv=argv, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as why:
        if os.environ.get("MIXATTN_DEBUG"):
            raise
        reason = str(why).strip()
        if "Traceback" in reason:  # a config file raised; the flag's message quotes all of it
            reason = reason.splitlines()[-1].removeprefix("ValueError: ")
        _fail(ValueError(f"{reason.rstrip('.')}; --help lists the flags"))
    except (KeyError, AttributeError, TypeError, ValueError, OSError, ImportError) as why:
        if os.environ.get("MIXATTN_DEBUG"):
            raise
        _fail(why)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: KeyboardInterrupt, as ever, but never a lost one.

    jax is called back by Python's garbage collector, which swallows what is raised within a callback; while
    programs are traced, that is where many a Ctrl-C arrives. There it is put off for a moment.
    """
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        threading.Timer(0.01, signal.raise_signal, (number,)).start()
    else:
        raise KeyboardInterrupt


def _guarded(main: Callable[[], None]) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C; what was committed to disk is whole", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as why:
        if os.environ.get("MIXATTN_DEBUG"):
            raise
        _fail(why)


def _fail(why: Exception) -> NoReturn:
    sentence = str(why.args[0]) if isinstance(why, KeyError) and why.args else str(why)
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(2)
