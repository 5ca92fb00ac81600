"""Whether a solution is the given program with hints and nothing else, decided on tokens alone."""

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from mixattn.evals.dafny.lexer import DafnyTextError, Token
from mixattn.evals.dafny.reader import read
from mixattn.evals.dafny.reading import NO_BODY, Cheat, Reading, rule_of
from mixattn.evals.dafny.strip import strip


class _Task(NamedTuple):
    """What solutions of a task are compared with, and what the original's own hints may hold."""

    expected: Reading
    granted: Counter[tuple[str, str]]


@lru_cache(maxsize=64)
def _task(original: str, stripped: str) -> _Task:
    """Reads a task. Solutions are compared with `stripped`.

    If that is a fragment, or lost more than hints, the original as `strip` strips it takes its place.

    Raises:
      DafnyTextError: neither can be read.
    """
    try:
        given = read(stripped)
    except DafnyTextError:
        given = read(strip(original))
    try:
        whole = read(original, given)
        if _texts(given.code) != _texts(whole.code):
            given = read(strip(original))
            whole = read(original, given)
    except DafnyTextError:
        return _Task(given, Counter())
    return _Task(given, Counter((c.rule, c.text) for c in whole.cheats))


def cheats(original: str, stripped: str, solution: str) -> tuple[Cheat, ...]:
    """Everything for which `solution` is refused; empty if it adds only hints to the program.

    Args:
      original: the program with its author's hints. What they hold is allowed as often as there.
      stripped: the task: the program without them.
    """
    try:
        expected, granted = _task(original, stripped)
    except DafnyTextError as why:
        return (Cheat("unreadable task", why.line, why.why),)
    try:
        found = read(solution, expected)
    except DafnyTextError as why:
        return (Cheat("unreadable", why.line, why.why),)
    granted, refused = granted.copy(), []
    for cheat in found.cheats:
        if granted[cheat.rule, cheat.text]:
            granted[cheat.rule, cheat.text] -= 1
        else:
            refused.append(cheat)
    return (*refused, *_changed(expected.code, found.code))


def forget() -> None:
    """Drops the readings of tasks that are kept between checks."""
    _task.cache_clear()


def _texts(code: list[Token]) -> list[str]:
    return [token[0] for token in code]


def _changed(expected: list[Token], found: list[Token]) -> tuple[Cheat, ...]:
    """The first place where the code differs, by what was done there if that has a name."""
    for i, (old, new) in enumerate(zip(expected, found, strict=False)):
        if old[0] != new[0]:
            what = f"{new.text[:40]!r} instead of {old.text[:40]!r}"
            return (Cheat(_named(found, i), new.line, what),)
    if len(found) > len(expected):
        extra = found[len(expected)]
        return (Cheat(_named(found, len(expected)), extra.line, f"{extra.text[:40]!r} is new"),)
    if len(found) < len(expected):
        lost = expected[len(found)]
        return (Cheat("changed", found[-1].line if found else 1, f"{lost.text[:40]!r} is missing"),)
    return ()


def _named(code: list[Token], i: int) -> str:
    return "no body" if code[i][0] == NO_BODY else rule_of(code, i) or "changed"
