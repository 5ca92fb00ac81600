"""A baseline without a model: guess invariants from templates, let the verifier throw out the wrong ones.

That is Houdini: as long as the verifier names candidates that do not hold, drop them; what is left is the
greatest set that is inductive. It finds bounds, and what links an accumulator to a function of the counter.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mixattn.evals.dafny.expressions import is_word
from mixattn.evals.dafny.lexer import DafnyTextError
from mixattn.evals.dafny.protocol import Verify
from mixattn.evals.dafny.reader import read
from mixattn.evals.dafnybench.checking import Task
from mixattn.evals.dafnybench.models import Attempt, Model

MAX_ROUNDS = 12
MAX_CANDIDATES = 60
_ASSIGNED = re.compile(r"(\w+)\s*:=")


class Loop(NamedTuple):
    """A loop: where clauses go, its guard, its counter and bounds, and the method's postconditions."""

    at: int
    counters: tuple[str, ...]
    bounds: tuple[str, ...]
    ensures: tuple[str, ...]


def annotator(verify: Verify) -> Model:
    """A model that answers by Houdini with `verify`; it uses nothing but the task without hints."""

    def answer(task: Task, _: Sequence[Attempt]) -> str:
        try:
            return houdini(task.stripped, verify)
        except DafnyTextError:
            return task.stripped

    return answer


def houdini(program: str, verify: Verify) -> str:
    """`program` with the candidates that survive.

    Raises:
      DafnyTextError: the program cannot be read.
    """
    chosen = [(loop.at, c) for loop in loops(program) for c in _candidates(loop)[:MAX_CANDIDATES]]
    text = program
    for _ in range(MAX_ROUNDS):
        text, lines = _with_candidates(program, chosen)
        found = verify(text)
        if found.verdict == "verified":
            return text
        wrong = {
            error.line
            for error in found.errors
            if "related" not in error.message or "invariant" in error.message
        }
        kept = [c for c in chosen if lines[c] not in wrong]
        if len(kept) == len(chosen):
            return text
        chosen = kept
    return text


def loops(program: str) -> list[Loop]:
    """The loops of a program, with what candidates are built from.

    Raises:
      DafnyTextError: the program cannot be read.
    """
    reading = read(program)
    tokens = reading.tokens
    text = [t[0] for t in tokens]
    found = []
    for i, word in enumerate(text):
        if word == "while":
            body = next((j for j in range(i, len(text)) if text[j] == "{" and text[j + 1] != ":"), None)
            if body is None:
                continue
            guard = program[tokens[i].end : tokens[body].start]
            found.append(_loop(program, guard, tokens[i].start, tokens[body].start))
    return found


def _loop(program: str, guard: str, start: int, at: int) -> Loop:
    names = tuple(dict.fromkeys(re.findall(r"[A-Za-z_]\w*(?:\.Length)?|\|\w+\||\d+", guard)))
    head = program.rfind("method", 0, start)
    method = program[head:start]
    ensures = tuple(e.strip() for e in re.findall(r"ensures (.*)", method))
    inside = _ASSIGNED.findall(program[at:])
    counters = tuple(n for n in names if n in inside)
    bounds = tuple(n for n in names if n not in counters)
    arrays = re.findall(r"(\w+)\s*:\s*array<", method)
    sequences = re.findall(r"(\w+)\s*:\s*seq<", method)
    naturals = re.findall(r"(\w+)\s*:\s*nat", method.split("returns")[0])
    bounds += tuple(f"{a}.Length" for a in arrays) + tuple(f"|{s}|" for s in sequences) + tuple(naturals)
    return Loop(at, counters or tuple(dict.fromkeys(inside[:2])), tuple(dict.fromkeys(bounds)), ensures)


def _candidates(loop: Loop) -> list[str]:
    return list(dict.fromkeys(_guesses(loop)))


def _guesses(loop: Loop) -> Iterator[str]:
    for i in loop.counters:
        yield f"0 <= {i}"
        yield f"1 <= {i}"
        yield f"-1 <= {i}"
        for bound in loop.bounds:
            yield f"{i} <= {bound}"
            yield f"{i} < {bound}"
    for i in loop.counters:
        for j in loop.counters:
            if i != j:
                yield f"{i} <= {j}"
                yield f"{i} <= {j} + 1"
    for clause in loop.ensures:
        yield clause
        for i in loop.counters:
            for bound in loop.bounds:
                if re.search(_as_word(bound), clause):
                    yield re.sub(_as_word(bound), i, clause)
            yield from _of_prefix(clause, i)
    for i in loop.counters:
        for bound in (b for b in loop.bounds if b.endswith(".Length")):
            array = bound.removesuffix(".Length")
            yield f"forall k_ :: {i} <= k_ < {bound} ==> {array}[k_] == old({array}[k_])"


def _of_prefix(clause: str, i: str) -> Iterator[str]:
    """A promise about a whole sequence as one about its first `i` elements."""
    for name in dict.fromkeys(re.findall(r"[A-Za-z]\w*", clause)):
        if is_word(name) and re.search(rf"[(,]\s*{name}\s*[,)]|in {name}\b", clause):
            yield re.sub(rf"\b{name}\b(?!\()", f"{name}[..{i}]", clause)


def _as_word(text: str) -> str:
    return rf"(?<![\w.|]){re.escape(text)}(?![\w.|])"


type Candidate = tuple[int, str]


def _with_candidates(program: str, chosen: list[Candidate]) -> tuple[str, dict[Candidate, int]]:
    """The program with every candidate on a line of its own, and those lines."""
    parts, lines, last, line = [], {}, 0, 1
    for candidate in chosen:
        at, clause = candidate
        parts.append(program[last:at] + "\n")
        line += program.count("\n", last, at) + 1
        lines[candidate] = line
        parts.append(f"    invariant {clause}\n")
        line += 1
        last = at
    return "".join([*parts, program[last:]]), lines
