"""The entry point of every command: `--config=FILE.py`, overrides by name, one clear sentence on bad input.

A config file defines `get_config()`, or `get_config(variant)` for `--config=FILE.py:variant`, which returns a
plain dataclass. A dataclass may define `check()`, which raises ValueError with the two facts that disagree;
it is called again here, after the overrides.
"""

import dataclasses
import math
import os
import re
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
    """Declares `--config`; `config()` reads it inside main."""
    config_flags.DEFINE_config_file("config", default, "Config file of the experiment, e.g. configs/demo.py")


def config() -> Any:
    """The parsed and checked config dataclass.

    Raises:
      ValueError: no config was given, or a `check()` refuses it.
    """
    value = flags.FLAGS.config
    if value is None:
        raise ValueError("--config is missing; name an experiment, e.g. --config=configs/demo.py")
    if not dataclasses.is_dataclass(value):
        try:
            value.explain  # noqa: B018  the placeholder for an unreadable file raises the cause
        except Exception as why:
            raise ValueError(f"--config could not be read: {why}") from why
        raise ValueError(f"get_config() of --config returned {type(value).__name__}, not a dataclass")
    check_tree(value)
    return value


def model_config() -> "ModelConfig":
    """The `ModelConfig` of `--config`: the config itself, or its field `model`.

    Raises:
      ValueError: the config has no model, or `config` refuses it.
    """
    from mixattn.spec import ModelConfig  # imports numpy, which not every command needs

    value = config()
    value = getattr(value, "model", value)
    if not isinstance(value, ModelConfig):
        raise ValueError(
            f"--config holds a {type(value).__name__}, neither a ModelConfig nor a config with a model"
        )
    return value


def check_tree(node: Any) -> None:
    """Checks the types of every dataclass in the tree and calls its `check()`, children first.

    Raises:
      ValueError: a value of another type than its field, a number that is not finite, text that is no
        Unicode, or what `check` refuses.
    """
    for field in dataclasses.fields(node):
        child = getattr(node, field.name)
        if dataclasses.is_dataclass(child):
            check_tree(child)
        elif isinstance(child, list):
            for each in child:
                if dataclasses.is_dataclass(each):
                    _check_types(each)
    _check_types(node)
    if hasattr(node, "check"):
        node.check()


def _check_types(node: Any) -> None:
    for field in dataclasses.fields(node):
        value, kind = getattr(node, field.name), field.type
        if kind not in (bool, int, float, str):
            continue
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{field.name} is {value!r}, which is no {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is {value}; it must be finite")
        if isinstance(value, str):
            value.encode()  # UnicodeEncodeError is a ValueError


def run(main: Callable[[], None], argv: list[str] | None = None) -> None:
    """Parses flags, runs `main`, and reports a user's mistake in one sentence with exit code 2.

    Ctrl-C exits with code 130. MIXATTN_DEBUG=1 in the environment keeps tracebacks.

    Args:
      argv: program name and flags of a subcommand, without other arguments; None = the process's arguments.
    """

    sys.argv[1:] = [_with_brackets(arg) for arg in sys.argv[1:]]  # where ml_collections finds overrides
    given = sys.argv if argv is None else argv
    if {"-h", "-help", "--help", "--helpfull", "--helpshort"} & set(given[1:]):
        print(_help(given))
        sys.exit(0)

    def start(rest: list[str]) -> None:
        if argv is not None and len(rest) > 1:
            _fail(ValueError(f"unexpected argument {rest[1]!r}; flags start with --"))
        _run_guarded(main)

    app.run(start, argv=argv, flags_parser=_parse)


def _help(argv: list[str]) -> str:
    """The docstring of the command, its flags, and the fields of the config if `--config` names one."""
    program = sys.modules["__main__"]
    told = flags.FLAGS.main_module_help().strip().partition("\n")[2]  # without the path of the module
    parts = [(program.__doc__ or "").strip(), f"Flags:\n{told}"]
    if not any(arg.startswith("--config=") for arg in argv):
        if "config" in flags.FLAGS:
            parts.append("--config=FILE.py --help lists the fields of that config with their meaning.")
        return "\n\n".join(part for part in parts if part)
    from mixattn.tools import config_help

    _parse([argv[0], *(arg for arg in argv[1:] if arg.startswith("--config"))])
    return "\n\n".join((*parts, config_help.describe(config())))


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS([_with_brackets(arg) for arg in argv])
    except flags.Error as why:
        if os.environ.get("MIXATTN_DEBUG"):
            raise
        reason = str(why).strip()
        if "Traceback" in reason:  # a config file raised; the flag's message quotes all of it
            reason = reason.splitlines()[-1].removeprefix("ValueError: ")
        _fail(ValueError(f"{reason.rstrip('.')}; --help lists the flags"))
    except SyntaxError as why:
        _fail(
            ValueError(f"a config field or value cannot be read: {why.msg} in {(why.text or '').strip()!r}")
        )
    except (LookupError, AttributeError, TypeError, ValueError, OSError, ImportError) as why:
        if os.environ.get("MIXATTN_DEBUG"):
            raise
        _fail(why)


def _with_brackets(arg: str) -> str:
    """--config.train.stages.0.steps=9 -> --config.train.stages[0].steps=9, which is how lists are indexed."""
    name, equals, value = arg.partition("=")
    if name.startswith("--config."):
        name = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", name)
    return name + equals + value


def _on_sigint(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, later if it would be lost.

    Python's garbage collector calls jax back and swallows exceptions raised in the callback. During tracing a
    Ctrl-C often arrives there, so that the signal is raised again shortly after.
    """
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        # To the main thread itself: a signal raised in the timer's thread does not end a sleep or a read.
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.01, signal.pthread_kill, (main, number)).start()
    else:
        raise KeyboardInterrupt


def _run_guarded(main: Callable[[], None]) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_sigint)
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C; files written so far are complete", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as why:
        if os.environ.get("MIXATTN_DEBUG"):
            raise
        _fail(why)


def _fail(why: Exception) -> NoReturn:
    message = str(why.args[0]) if isinstance(why, KeyError) and why.args else str(why)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
