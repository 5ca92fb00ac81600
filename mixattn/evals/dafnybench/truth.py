"""The reference answers under this verifier: which of them verify, as they are and rewritten for it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mixattn.evals.dafny.dialect import LEVELS, rewrite
from mixattn.evals.dafny.pool import verify_all
from mixattn.evals.dafny.protocol import Verification, Verify

UNREAD = ("parse", "resolve", "crash")


def verdicts(
    programs: list[tuple[str, str]], verify: Verify, workers: int, *, rewriting: bool
) -> Iterator[dict[str, Any]]:
    """Yields a row for each program as it is decided.

    With `rewriting`, what the verifier cannot read is tried at the next level of `dialect`.
    """
    waiting = programs
    for level in LEVELS if rewriting else LEVELS[:1]:
        texts = {name: rewrite(program, level) for name, program in waiting}
        last = level == (LEVELS[-1] if rewriting else 0)
        unread = set()
        for name, found in verify_all(texts.items(), verify, workers):
            if found.verdict in UNREAD and not last:
                unread.add(name)
            else:
                yield row(name, found, level)
        waiting = [named for named in waiting if named[0] in unread]


def row(name: str, found: Verification, level: int) -> dict[str, Any]:
    """One line of the CSV."""
    return {
        "program": name,
        "source": source(name),
        "verdict": found.verdict,
        "dialect_level": level,
        "n_verified": found.n_verified,
        "n_errors": sum(not e.message.startswith("related") for e in found.errors),
        "seconds": round(found.seconds, 2),
        "cpu_seconds": round(found.cpu_seconds, 2),
        "tries": found.tries,
    }


def source(name: str) -> str:
    """The public benchmark's three origins, by the file's name."""
    return next((part for part in ("Clover", "dafny-synthesis") if name.startswith(part)), "GitHub")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by verdict and by source."""
    sources = sorted({r["source"] for r in rows})
    return {
        "programs": len(rows),
        "verdicts": dict(Counter(r["verdict"] for r in rows)),
        "exit_0": sum(r["verdict"] in ("verified", "empty") for r in rows),
        "verified": {
            s: [sum(r["verdict"] == "verified" for r in part), len(part)]
            for s in sources
            if (part := [r for r in rows if r["source"] == s])
        },
    }
