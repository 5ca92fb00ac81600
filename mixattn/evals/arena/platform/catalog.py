"""The models of an arena, from a TOML file.

[[model]]
name = "small"
base_url = "http://127.0.0.1:8000/v1"     # a server of OpenAI's chat protocol
model = "tiny"                            # its name there; `name` if left out
key_env = "SMALL_KEY"                     # environment variable that holds the key, if one is needed
weight = 1.0                              # how often it is drawn; 0 stops it

[[model]]
name = "ours"
engine = "models/smollm2"                 # a checkpoint, run by this project's engine in a process of its own

[[model]]
name = "fixed"
scripted = "I say the same every time."   # for trying the platform out, and for tests
broken = true                             # known to be bad: meets others in honeypot battles only
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = {
    *("name", "base_url", "model", "key_env", "weight", "engine", "scripted", "aliases", "delay_s", "fails"),
    "broken",
}


@dataclass(frozen=True)
class ArenaModel:
    """One model: a chat server (`base_url`, `model`, `key`), a checkpoint (`engine`) or a fixed answer.

    Attributes:
      weight: relative frequency with which it is drawn.
      aliases: further words that would give it away in an answer.
      delay_s: for scripted models, seconds between words.
      broken: known to be bad; it takes part in honeypot battles only.
      fails: for scripted models, words after which the answer breaks off; 0 never.
    """

    name: str
    base_url: str = ""
    model: str = ""
    key: str = ""
    weight: float = 1.0
    scripted: str = ""
    aliases: tuple[str, ...] = ()
    delay_s: float = 0.0
    fails: int = 0
    engine: str = ""
    broken: bool = False


def read_catalog(path: str | Path) -> list[ArenaModel]:
    """The models of a file.

    Raises:
      ValueError: the file is not TOML, or a model is incomplete; says which.
      OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("model", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
        raise ValueError(f"{path} is not valid TOML: {why}") from why
    if not isinstance(entries, list) or len(entries) < 2:
        raise ValueError(f"{path} has fewer than two [[model]] entries; a battle needs two models")
    models = [_model(entry, number, path) for number, entry in enumerate(entries, 1)]
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} names model {twice[0]!r} twice")
    return models


def _check_types(entry: dict[str, Any], where: str) -> None:
    kinds = {"base_url": str, "scripted": str, "engine": str, "model": str, "key_env": str, "broken": bool}
    for field, kind in kinds.items():
        if field in entry and not (isinstance(entry[field], kind) and entry[field] != ""):
            raise ValueError(
                f"{where} has {field} = {entry[field]!r}, not a {kind.__name__} that says something"
            )
    for field in ("delay_s", "fails"):
        value = entry.get(field, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 3600:
            raise ValueError(f"{where} has {field} = {value!r}, not a number from 0 to 3600")
    aliases = entry.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where} has aliases that are not a list of texts")
    if "base_url" in entry and not entry["base_url"].startswith(("http://", "https://")):
        raise ValueError(
            f"{where} has base_url = {entry['base_url']!r}, which is neither http:// nor https://"
        )
    if "engine" in entry and not Path(entry["engine"]).exists():
        raise ValueError(f"{where} has engine = {entry['engine']!r}, which does not exist")


def _model(entry: dict[str, Any], number: int, path: Path) -> ArenaModel:
    where = f"model {number} of {path}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is a {type(entry).__name__}, not a table")
    unknown = sorted(entry.keys() - FIELDS)
    if unknown:
        raise ValueError(
            f"{where} has the unknown field {unknown[0]!r}; fields are {', '.join(sorted(FIELDS))}"
        )
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip() or len(name) > 200 or not name.isprintable():
        raise ValueError(f"{where} has no name of 1 to 200 printable characters")
    if len({"base_url", "scripted", "engine"} & entry.keys()) != 1:
        raise ValueError(f"{where} ({name}) needs one of base_url, engine and scripted")
    _check_types(entry, f"{where} ({name})")
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"{where} ({name}) has weight {weight!r}, not a number from 0 up")
    values = {k: v for k, v in entry.items() if k not in ("key_env", "aliases")}
    key_env = entry.get("key_env")
    if key_env and key_env not in os.environ:
        raise ValueError(
            f"{where} ({name}) takes its key from {key_env}, which the environment does not have"
        )
    key = os.environ[key_env] if key_env else ""
    aliases = tuple(map(str, entry.get("aliases", ())))
    return ArenaModel(**({"model": name} | values | {"key": key, "aliases": aliases}))
