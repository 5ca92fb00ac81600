"""Reads what Dafny printed: exit code and whole summary line together give the verdict.

Neither is enough alone: a time-out prints "1 verified, 0 errors, 1 time out" with exit code 4, and an empty
file prints "0 verified, 0 errors" with exit code 0.
"""

import csv
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from mixattn.evals.dafny.protocol import Problem, Verdict

_SUMMARY = re.compile(
    r"^Dafny program verifier finished with (\d+) (?:assertions )?verified, (\d+) errors?"
    r"((?:, \d+ [a-z ]+)*)$"
)
_PLACE = re.compile(r"^[^\n(]*\.dfy\((\d+),(\d+)\): (.*)$")
_CODE = re.compile(r"^(?:Error|Warning|Info)?\s*\(?(BP\d+)\)?:\s*")
_TIME_OUT = re.compile(
    r"Verification (?:of '.*' )?(?:inconclusive|timed out|out of resource|out of memory).*"
)
MAX_OUTPUT_CHARS = 200_000


class Summary(NamedTuple):
    """The counts of the summary line."""

    n_verified: int
    n_errors: int
    n_time_outs: int
    n_other: int  # inconclusive, out of memory, out of resource


def summary(output: str) -> Summary | None:
    """The counts, if exactly one line of `output` is a whole summary line."""
    lines = [m for line in output.splitlines() if (m := _SUMMARY.match(line.strip()))]
    if len(lines) != 1:
        return None
    rest = [part.split(" ", 1) for part in lines[0][3].split(", ") if part]
    time_outs = sum(int(n) for n, what in rest if what.startswith("time out"))
    other = sum(int(n) for n, what in rest if not what.startswith("time out"))
    return Summary(int(lines[0][1]), int(lines[0][2]), time_outs, other)


def verdict(exit_code: int, output: str) -> Verdict:
    """The verdict on a program whose verification ended by itself.

    "failed" beats "timeout": one refuted procedure decides, however long the others take.
    """
    found = summary(output)
    if exit_code == 2:
        return "resolve" if "resolution/type errors detected" in output else "parse"
    if found is None or exit_code not in (0, 4):
        return "crash"
    if exit_code == 0:
        clean = found.n_errors == found.n_time_outs == found.n_other == 0
        return ("verified" if found.n_verified else "empty") if clean else "crash"
    if found.n_errors:
        return "failed"
    return "timeout" if found.n_time_outs or found.n_other else "failed"


def problems(output: str) -> tuple[Problem, ...]:
    """The located messages, warnings and prover noise left out."""
    return tuple(p for line in output.splitlines() if (p := _problem(line)) is not None)


def _problem(line: str) -> Problem | None:
    place = _PLACE.match(line)
    if place is None:
        return None
    text = place[3]
    if text.startswith(("Warning", "Info", "Related")) and not text.startswith("Related location"):
        return None
    code = _CODE.match(text)
    message = re.sub(r"^(?:Error(?: BP\d+)?|Related location)\s*:?\s*", _kept, text)
    kind = code[1] if code else ("time-out" if _TIME_OUT.search(text) else "")
    return Problem(int(place[1]), int(place[2]), kind, message.strip())


def _kept(prefix: re.Match[str]) -> str:
    return "related: " if prefix[0].startswith("Related") else ""


def procedures(xml: Path) -> dict[str, bool]:
    """Procedure -> verified, from `/xml:FILE`; empty if the file is missing or cut off.

    A declaration's well-formedness and its body are two procedures of one name; both must be verified.
    """
    try:
        root = ElementTree.parse(xml).getroot()
    except (OSError, ElementTree.ParseError):
        return {}
    found: dict[str, bool] = {}
    for method in root.iter("method"):
        name = method.get("name", "").rpartition("$$")[2]
        conclusion = method.find("conclusion")
        good = conclusion is not None and conclusion.get("outcome") == "correct"
        found[name] = found.get(name, True) and good
    return found


def logged_procedures(log: Path) -> dict[str, bool]:
    """The same from Dafny 4's `--log-format csv`; empty if the file is missing.

    A row is "Name (correctness)" or "Name (well-formedness)", for parts with "(assertion batch 1)" behind it.
    """
    try:
        rows = list(csv.reader(log.read_text(encoding="utf-8", errors="replace").splitlines()))
    except (OSError, csv.Error):
        return {}
    found: dict[str, bool] = {}
    for row in rows[1:]:
        if len(row) > 1:
            name = row[0].partition(" (")[0]
            found[name] = found.get(name, True) and row[1] == "Passed"
    return found
