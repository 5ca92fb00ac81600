"""What a run found: success by attempt, by length and by amount of hints, with every denominator named."""

from collections.abc import Callable, Sequence
from typing import Any

from mixattn.evals.dafny.reader import read
from mixattn.evals.dafny.strip import removable
from mixattn.evals.dafnybench.checking import Task
from mixattn.evals.dafnybench.models import Attempt

UNEQUAL = (
    "These rates are of this verifier. Published rates are of Dafny 4.3, which reads other programs,"
    " and of the public check: do not put them side by side."
)


def table(
    tasks: Sequence[Task], attempts: dict[str, list[Attempt]], usable: set[str], dafny: str
) -> dict[str, Any]:
    """The figures of a run.

    Args:
      attempts: by task; the first is attempt 0, the program without hints.
      usable: tasks whose original verifies with this verifier.
    """
    done = [task for task in tasks if task.name in attempts]
    trivial = {t.name for t in done if attempts[t.name][0].accepted}
    groups: dict[str, list[Task]] = {
        "all tasks": done,
        "not verifying without hints": [t for t in done if t.name not in trivial],
        "original verifies with this verifier": [t for t in done if t.name in usable],
        "both": [t for t in done if t.name in usable - trivial],
    }
    return {
        "dafny": dafny,
        "tasks": len(tasks),
        "done": len(done),
        "rates": {name: _rates(group, attempts) for name, group in groups.items()},
        "by_attempt": _by_attempt(done, attempts),
        "by_length": _bins(done, attempts, lambda task: len(task.original)),
        "by_hints": _bins(done, attempts, hint_chars),
        "note": UNEQUAL,
    }


def hint_chars(task: Task) -> int:
    """Characters of the original's hints."""
    reading = read(task.original)
    spans = removable(reading)
    return sum(reading.tokens[s.end - 1].end - reading.tokens[s.start].start for s in spans)


def _rates(group: Sequence[Task], attempts: dict[str, list[Attempt]]) -> dict[str, Any]:
    strict = sum(any(a.accepted for a in attempts[t.name]) for t in group)
    public = sum(any(a.accepted_official for a in attempts[t.name]) for t in group)
    return {
        "of": len(group),
        "accepted": strict,
        "rate": _share(strict, len(group)),
        "public_check_accepts": public,
        "public_check_rate": _share(public, len(group)),
    }


def _by_attempt(group: Sequence[Task], attempts: dict[str, list[Attempt]]) -> list[dict[str, Any]]:
    longest = max((len(attempts[t.name]) for t in group), default=0)
    rows = []
    for k in range(longest):
        good = sum(any(a.accepted for a in attempts[t.name][: k + 1]) for t in group)
        rows.append({"attempt": k, "accepted": good, "of": len(group), "rate": _share(good, len(group))})
    return rows


def _bins(
    group: Sequence[Task], attempts: dict[str, list[Attempt]], size: Callable[[Task], int], n: int = 5
) -> list[dict[str, Any]]:
    """Success in `n` bins of equally many tasks."""
    sized = sorted((_size(task, size), task.name) for task in group)
    rows = []
    for b in range(n):
        part = sized[b * len(sized) // n : (b + 1) * len(sized) // n]
        if part:
            good = sum(any(a.accepted for a in attempts[name]) for _, name in part)
            row = {"from_chars": part[0][0], "to_chars": part[-1][0], "accepted": good, "of": len(part)}
            rows.append(row | {"rate": _share(good, len(part))})
    return rows


def _size(task: Task, size: Callable[[Task], int]) -> int:
    try:
        return size(task)
    except ValueError:
        return 0


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def lines(found: dict[str, Any]) -> str:
    """The same for people."""
    out = [f"{found['done']} of {found['tasks']} tasks done, dafny {found['dafny']}", ""]
    out.append(f"{'denominator':38} {'of':>5} {'strict':>8} {'public check':>13}")
    for name, row in found["rates"].items():
        out.append(
            f"{name:38} {row['of']:5} {_percent(row['rate']):>8} {_percent(row['public_check_rate']):>13}"
        )
    for title, key in (("characters", "by_length"), ("characters of hints", "by_hints")):
        out += ["", f"{title:38} {'of':>5} {'strict':>8}"]
        out += [
            f"{row['from_chars']:>17} to {row['to_chars']:<17} {row['of']:5} {_percent(row['rate']):>8}"
            for row in found[key]
        ]
    out += ["", f"{'up to attempt':38} {'of':>5} {'strict':>8}"]
    out += [f"{row['attempt']:<38} {row['of']:5} {_percent(row['rate']):>8}" for row in found["by_attempt"]]
    return "\n".join([*out, "", found["note"]])


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"
