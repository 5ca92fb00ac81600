"""The fields of a config in words: path, default and meaning, read from the docstrings of its dataclasses.

A meaning is the entry of the field in the `Attributes:` section of its class.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

_ENTRY = re.compile(r"^(?P<names>\w+(?:, \w+)*): (?P<text>.*)$")
_WIDTH = 108


class ConfigField(NamedTuple):
    """A leaf of a config: path (`train.stages[0].steps`), value, meaning ("" if nothing says it)."""

    path: str
    value: Any
    meaning: str


def fields(config: Any, prefix: str = "") -> Iterator[ConfigField]:
    """Yields every leaf of a tree of dataclasses and lists of them."""
    told = meanings(type(config))
    for each in dataclasses.fields(config):
        value, path = getattr(config, each.name), f"{prefix}{each.name}"
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{path}.")
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for index, entry in enumerate(value):
                yield from fields(entry, f"{path}[{index}].")
        else:
            yield ConfigField(path, value, told.get(each.name, ""))


def meanings(kind: type) -> dict[str, str]:
    """The entries of the `Attributes:` sections of a class and its bases, by field."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        section = re.split(r"\n\S", section)[0]
        names: list[str] = []
        for line in textwrap.dedent(section).splitlines():
            if match := _ENTRY.match(line):
                names = match["names"].split(", ")
                found |= dict.fromkeys(names, match["text"])
            elif line.startswith(" "):
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                names = []
    return found


def describe(config: Any) -> str:
    """The help on a config: one entry for each field."""
    lines = ["Fields of the config, as --config.PATH=VALUE, with the values they have now:", ""]
    shown: set[str] = set()
    for path, value, meaning in fields(config):
        lines.append(f"  --config.{path}={value!r}")
        general = re.sub(r"\[\d+\]", "[]", path)
        if meaning and general not in shown:
            lines += textwrap.wrap(meaning, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        shown.add(general)
    return "\n".join(lines)
