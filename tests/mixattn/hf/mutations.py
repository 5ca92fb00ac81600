"""Damage at random to what comes in from outside, and what may come of it.

A case is a seed: it picks a good file and spoils it, by bytes or by meaning. Allowed is a ValueError or
OSError of one line, or a result that is right: all as in the good file, or what the spoiled one plainly says.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "2", "none", "\ud800", "é", [], [1], ["a"], {}, {"a": 1}, [[]], "0_0", "llama", 1.0),
]


def flip_bytes(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if out:
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def splice(rng: random.Random, data: bytes) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 8, 64))
    return data[:at] + rng.randbytes(length) + data[at + rng.choice((0, length)) :]


def respell(rng: random.Random, data: bytes) -> bytes:
    """Another value, another key, or one less, somewhere in a JSON object."""
    value = json.loads(data)
    place = value
    for _ in range(rng.randrange(4)):
        inner = [
            x
            for x in (place.values() if isinstance(place, dict) else place)
            if isinstance(x, dict | list) and x
        ]
        if not inner:
            break
        place = rng.choice(inner)
    if not place:
        return data
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    match rng.randrange(4):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            place[rng.choice(("x", str(key) + "_", str(key).upper()))] = place.pop(key)
        case 2 if isinstance(place[key], int | float) and not isinstance(place[key], bool):
            place[key] = place[key] + rng.choice((-1, 1, 0.5, 1000))
        case _:
            place[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def mutate(rng: random.Random, path: Path) -> str:
    """Spoils one file; says how."""
    if rng.random() < 0.05:
        path.unlink()
        return "missing"
    data = path.read_bytes()
    ways: list[Callable[[random.Random, bytes], bytes]] = [flip_bytes, cut, splice]
    if path.suffix == ".json":
        ways += [respell] * 6
    way = rng.choice(ways)
    path.write_bytes(way(rng, data))
    return way.__name__


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])


def respell_header(rng: random.Random, path: Path) -> str:
    """A safetensors file whose header says something else; its values stay."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = respell(rng, data[8 : 8 + length])
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    return "respell_header"


def copy_of(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def same_tensors(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k], equal_nan=True) for k in one)
