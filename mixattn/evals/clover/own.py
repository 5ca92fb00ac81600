"""Our own set: 20 right triples and 60 wrong ones, 15 of each kind; written for this project.

A program has three meanings, each with its docstring, annotation and code that agree: the right one, a weak
one that leaves the result open, and a changed one that fixes another result. The right code also satisfies
the weak annotation. Mixing components of two meanings gives wrong triples that still verify:

    C1  right code and annotation, changed docstring       C2  right code and docstring, weak annotation
    C3  right code, weak annotation and docstring          C6  right docstring, changed code and annotation

Each program leaves one kind out, in turn, so that there are as many of each.
"""

import functools
import re
from importlib import resources
from typing import Literal, NamedTuple

from mixattn.evals.clover.method import Method, read_method
from mixattn.evals.clover.triple import Kind, Triple, with_annotation

type Sense = Literal["right", "weak", "changed"]
_WRONG: tuple[Kind, ...] = ("C1", "C2", "C3", "C6")


class Meaning(NamedTuple):
    """A docstring, an annotation and code that agree. `sense` is its part in the own set."""

    docstring: str
    method: Method
    sense: Sense


class OwnProgram(NamedTuple):
    """The meanings of one program, and its unit tests."""

    name: str
    right: Meaning
    weak: Meaning
    changed: Meaning
    tests: str


@functools.cache
def programs() -> tuple[OwnProgram, ...]:
    """The programs of the own set, by name."""
    folder = resources.files("mixattn.evals.clover") / "own"
    entries = sorted((e for e in folder.iterdir() if e.name.endswith(".dfy")), key=lambda e: e.name)
    return tuple(_program(e.name.removesuffix(".dfy"), e.read_text(encoding="utf-8")) for e in entries)


def _program(name: str, text: str) -> OwnProgram:
    titled = [part.partition("\n") for part in text.split("//// ")[1:]]
    parts = {title: body for title, _, body in titled}
    right, weak, changed = (_meaning(sense, parts[sense]) for sense in ("right", "weak", "changed"))
    return OwnProgram(name, right, weak, changed, parts["tests"])


def _meaning(sense: Sense, text: str) -> Meaning:
    comment = [line.removeprefix("//").strip() for line in text.splitlines() if line.startswith("//")]
    return Meaning(" ".join(comment), read_method(re.sub(r"(?m)^//.*\n", "", text)), sense)


def right_triples() -> list[Triple]:
    return [Triple(p.name, "right", p.right.method, p.right.docstring, p.tests) for p in programs()]


def wrong_triples() -> list[Triple]:
    """Every program without the kind that it leaves out."""
    return [
        _wrong(program, kind)
        for i, program in enumerate(programs())
        for j, kind in enumerate(_WRONG)
        if i % len(_WRONG) != j
    ]


def _wrong(p: OwnProgram, kind: Kind) -> Triple:
    weakened = with_annotation(p.right.method, p.weak.method.clauses)
    method, docstring = {
        "C1": (p.right.method, p.changed.docstring),
        "C2": (weakened, p.right.docstring),
        "C3": (weakened, p.weak.docstring),
        "C6": (p.changed.method, p.right.docstring),
    }[kind]
    return Triple(p.name, kind, method, docstring, p.tests)
