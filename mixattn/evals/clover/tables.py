"""What a run says: acceptance by kind and by edge, and what each edge contributes."""

from collections.abc import Sequence
from typing import Any

from mixattn.evals.clover.checks import accepted_by
from mixattn.evals.clover.experiment import Row, statuses
from mixattn.evals.clover.triple import KINDS, Edge, Kind

# Accepted of 60 at k=1 and k=10 in the paper (GPT-4, Dafny 4.0, its own 60 programs), for orientation only.
PUBLISHED: dict[Kind, tuple[int, int]] = {
    "right": (45, 52),
    "C1": (0, 0),
    "C2": (0, 0),
    "C3": (0, 0),
    "C6": (0, 0),
}


def edges_of(rows: Sequence[Row]) -> list[Edge]:
    """The edges that every row has."""
    if not rows:
        return []
    return [edge for edge in statuses(rows[0]) if all(edge in row["edges"] for row in rows)]


def by_kind(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each kind: triples, accepted ones, those that passed each edge, and "cannot say" at any edge."""
    table = []
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        if of_kind:
            line: dict[str, Any] = {"kind": kind, "triples": len(of_kind)}
            line["accepted"] = sum(row["accepted"] for row in of_kind)
            for edge in edges_of(rows):
                line[edge] = sum(statuses(row)[edge] == "pass" for row in of_kind)
            line["cannot say"] = sum("cannot say" in statuses(row).values() for row in of_kind)
            table.append(line)
    return table


def ablation(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Right and wrong triples accepted with all edges, without each one, and by each one alone.

    Counts are by kind; rows need every edge, so that a run with early quit has no ablation.
    """
    edges = edges_of(rows)
    settings = [("all six", edges)]
    settings += [(f"without {edge}", [e for e in edges if e != edge]) for edge in edges]
    settings += [(f"only {edge}", [edge]) for edge in edges]
    table = []
    for name, kept in settings:
        line: dict[str, Any] = {"edges": name}
        for kind in KINDS:
            line[kind] = sum(accepted_by(statuses(r), kept) for r in rows if r["kind"] == kind)
        line["wrong"] = sum(line[kind] for kind in KINDS if kind != "right")
        table.append(line)
    return table


def plain(table: Sequence[dict[str, Any]]) -> str:
    """A table of dicts with equal keys as aligned text; empty for no rows."""
    if not table:
        return ""
    head = list(table[0])
    cells = [head, *[[str(line[key]) for key in head] for line in table]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(word.ljust(w) for word, w in zip(row, widths)).rstrip() for row in cells)
