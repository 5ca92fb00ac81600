"""Checks many triples, keeps every finished one on disk, and resumes after a stop."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixattn.evals.clover.checks import Status, Tools, check
from mixattn.evals.clover.triple import EDGES, Edge, Triple
from mixattn.tools import files

type Row = dict[str, Any]  # name, kind, accepted, seconds, edges: {edge: {status, trials, reason}}


class Results:
    """The folder of a run: `run.json` says what is measured, `results.jsonl` holds one line a triple.

    Raises:
      ValueError: the folder holds another run; the sentence says what differs.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.jsonl"
        recipe = folder / "run.json"
        if recipe.exists():
            before = files.read_json(recipe)
            for key in about.keys() | before.keys():
                if before.get(key) != about.get(key):
                    raise ValueError(
                        f"{folder} holds a run with {key}={before.get(key)!r}, not {about.get(key)!r};"
                        " continue it with that, or name another --out"
                    )
        files.write_json(recipe, about)
        self.rows = read_rows(self._path)
        # A line that was cut off by a kill is dropped before anything is added.
        files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: Row) -> None:
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self.rows.append(row)

    def has(self, triple: Triple) -> bool:
        return any((row["name"], row["kind"]) == (triple.name, triple.kind) for row in self.rows)


def read_rows(path: Path) -> list[Row]:
    """The finished triples of a run; a last line without its end is left out.

    Raises:
      ValueError: another line is not a result.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["edges"], row["kind"], row["name"]
        except (ValueError, KeyError, TypeError) as why:
            raise ValueError(f"{path}, line {number} is not a result ({why})") from why
        rows.append(row)
    return rows


async def run_all(
    triples: Sequence[Triple],
    tools: Tools,
    results: Results,
    *,
    k: int = 1,
    seed: int = 0,
    edges: Sequence[Edge] = EDGES,
    early_quit: bool = False,
    parallel: int = 2,
    on_row: Callable[[Row], None] = lambda row: None,
) -> None:
    """Checks the triples that `results` lacks, at most `parallel` at once.

    Raises:
      CallFailed, VerifierGone: what was finished is kept.
    """
    waiting = asyncio.Semaphore(parallel)

    async def one(triple: Triple) -> None:
        async with waiting:
            start_s = time.monotonic()
            report = await check(triple, tools, k=k, seed=seed, edges=edges, early_quit=early_quit)
            row: Row = {"name": triple.name, "kind": triple.kind, "accepted": report.accepted}
            row["seconds"] = round(time.monotonic() - start_s, 3)
            row["edges"] = {
                edge: {"status": r.status, "trials": r.trials, "reason": r.reason[:500]}
                for edge, r in report.edges.items()
            }
            results.add(row)
            on_row(row)

    async with asyncio.TaskGroup() as tasks:
        for triple in triples:
            if not results.has(triple):
                tasks.create_task(one(triple))


def statuses(row: Row) -> dict[Edge, Status]:
    return {edge: result["status"] for edge, result in row["edges"].items()}
