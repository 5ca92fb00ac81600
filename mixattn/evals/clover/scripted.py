"""Models without a model: they look a component up and answer with another component of the meaning it has.

`oracle` takes every text of the own set at its word. `charitable` reads what leaves the result open as if it
meant the right thing, and as a judge finds the two alike. `noisy` is the oracle, right with a probability.
`ground_truth` answers with the right triple's components whatever it is shown; it also works on public data.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from mixattn.evals.clover.method import Method, program
from mixattn.evals.clover.own import Meaning, OwnProgram, programs
from mixattn.evals.clover.prompts import INSTRUCTIONS, Task
from mixattn.evals.clover.triple import Triple
from mixattn.evals.llm import Prompt, Scripted

NAMES = ("oracle", "charitable", "noisy", "ground_truth")


class _Reading(NamedTuple):
    """A component's text as it stands in prompts, and what the model takes it to mean."""

    text: str
    meaning: Meaning
    another: Meaning  # what a noisy model takes it to mean when it is wrong


def oracle() -> Scripted:
    return noisy(1.0)


def noisy(p: float) -> Scripted:
    """Right with probability `p` at each try, else about another meaning. As a judge it is always right."""
    readings = [_reading(o, o, _other(p_, o), task) for p_ in programs() for o in _all(p_) for task in _SHOWN]
    return _scripted(readings, p)


def charitable() -> Scripted:
    """Takes every weak text to mean the right thing."""
    readings = [
        _reading(o, p.right if o is p.weak else o, p.changed, task)
        for p in programs()
        for o in _all(p)
        for task in _SHOWN
    ]
    return _scripted(readings, 1.0)


def ground_truth(triples: Iterable[Triple]) -> Scripted:
    """Whatever text of a program it is shown, the answer is the right triple; the judge compares texts."""
    triples = list(triples)
    right = {t.name: Meaning(t.docstring, t.method, "right") for t in triples if t.kind == "right"}
    readings = []
    for t in triples:
        if t.name in right:
            shown = Meaning(t.docstring, t.method, "right" if t.kind == "right" else "changed")
            true = right[t.name]
            readings += [_reading(shown, true, true, task) for task in _SHOWN if task != "judge"]
            readings.append(_reading(shown, shown, shown, "judge"))
    return _scripted(readings, 1.0)


_SHOWN: Mapping[Task, Callable[[Meaning], str]] = {
    "doc2code": lambda m: m.docstring,
    "doc2anno": lambda m: m.docstring,
    "judge": lambda m: m.docstring,
    "anno2doc": lambda m: _annotated(m.method),
    "anno-complete": lambda m: _annotated(m.method),
    "code2doc": lambda m: m.method.body[1:].strip(),
}


def _all(p: OwnProgram) -> tuple[Meaning, ...]:
    return p.right, p.weak, p.changed


def _other(p: OwnProgram, meaning: Meaning) -> Meaning:
    """Another meaning whose annotation the code of this one does not satisfy."""
    return p.right if meaning is p.changed else p.changed


def _annotated(method: Method) -> str:
    return program(method.signature, method.clauses, "").strip()


def _reading(shown: Meaning, meaning: Meaning, another: Meaning, task: Task) -> tuple[Task, _Reading]:
    return task, _Reading(_SHOWN[task](shown), meaning, another)


def _scripted(readings: Iterable[tuple[Task, _Reading]], p: float) -> Scripted:
    book: dict[Task, list[_Reading]] = {task: [] for task in INSTRUCTIONS}
    for task, reading in readings:
        book[task].append(reading)

    def reply(prompt: Prompt, seed: int | None) -> str:
        task, material = _split(str(prompt))
        if task == "judge":
            return _judge(book["judge"], material)
        shown = [r for r in book[task] if r.text and r.text in material]
        if not shown:
            return "I do not know this text."
        reading = max(shown, key=lambda r: len(r.text))
        right = p >= 1 or random.Random(seed).random() < p
        return _answer(task, reading.meaning if right else reading.another)

    return Scripted(reply, wants_seed=True)


def _split(prompt: str) -> tuple[Task, str]:
    for task, instruction in INSTRUCTIONS.items():
        if prompt.startswith(instruction):
            return task, prompt.removeprefix(instruction)
    raise ValueError(f"a prompt that no check asks: {prompt[:60]!r}")


def _judge(readings: list[_Reading], material: str) -> str:
    """YES if both descriptions have the same meaning."""
    first, _, second = material.partition("\n\nSecond description:\n")
    first = first.partition("First description:\n")[2]
    meanings = [
        next((r.meaning.docstring for r in readings if r.text == text.strip()), text.strip())
        for text in (first, second)
    ]
    return "YES" if meanings[0] == meanings[1] else "NO, they differ."


def _answer(task: Task, meaning: Meaning) -> str:
    method = meaning.method
    match task:
        case "anno2doc" | "code2doc":
            return meaning.docstring
        case "doc2anno":
            text = _annotated(method)
        case _:
            text = program(method.signature, (), method.code, method.others)
    return f"```dafny\n{re.sub(r'(?m)^```', '', text)}\n```"
