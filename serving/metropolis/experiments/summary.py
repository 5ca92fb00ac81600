"""Summaries of an experiment's rows over seeds, beside the paper's figures."""

import statistics
from typing import Any

# The paper's results on its own traces and machines, by agents, hour (12 busy, 6 quiet, -1 the whole day) and
# number of L4 replicas: speed-up over parallel-sync, and share of the oracle (None: not published).
PAPER: dict[tuple[int, ...], tuple[float, float | None]] = {
    (25, -1, 1): (1.44, None),
    (25, -1, 8): (1.67, 0.747),
    (25, 12, 8): (1.88, 0.531),
    (25, 6, 8): (1.28, None),
    (100, 12, 1): (1.87, 0.90),
    (500, 12, 1): (1.60, 1.00),
    (500, 12, 8): (4.15, 0.924),
    (500, 6, 8): (2.79, None),
    (1000, 12, 8): (3.94, 0.97),
}
PAPER_SETTING = ("metropolis", "paper", "8B on L4")  # mode, variant and server of those results
GROUP = ("agents", "hour", "server", "replicas", "slots", "priority")

type BySeed = dict[str, dict[str, str]]  # seed -> row
type Cell = dict[tuple[str, str], BySeed]  # the rows of one setting by (mode, variant)


def summarise(rows: list[dict[str, str]], *, published: bool = True) -> list[dict[str, Any]]:
    """One entry per setting, mode and variant: mean and spread over seeds, speed-ups, share of the oracle.

    Ratios are taken seed by seed, with the same trace on both sides, and then averaged. `published` adds the
    paper's figures where it has the same setting.
    """
    cells: dict[tuple[str, ...], Cell] = {}
    for row in rows:
        setting = cells.setdefault(tuple(row[k] for k in GROUP), {})
        setting.setdefault((row["mode"], row["variant"]), {})[row["seed"]] = row
    return [
        {
            **dict(zip(GROUP, key)),
            **{"mode": mode, "variant": variant},
            **_figures(by_seed, setting),
            **(_published(dict(zip(GROUP, key)), mode, variant) if published else {}),
        }
        for key, setting in cells.items()
        for (mode, variant), by_seed in setting.items()
    ]


def _published(setting: dict[str, str], mode: str, variant: str) -> dict[str, Any]:
    """The paper's figures for the same setting, or nothing."""
    where = tuple(int(setting[name]) for name in ("agents", "hour", "replicas"))
    figures = PAPER.get(where) if (mode, variant, setting["server"]) == PAPER_SETTING else None
    return {"paper_vs_sync": figures[0], "paper_of_oracle": figures[1]} if figures else {}


def _figures(by_seed: BySeed, setting: Cell) -> dict[str, Any]:
    out: dict[str, Any] = {"seeds": len(by_seed)}
    out |= _spread("elapsed_s", [float(r["elapsed_s"]) for r in by_seed.values()])
    if all(r["parallelism"] for r in by_seed.values()):
        out |= _spread("parallelism", [float(r["parallelism"]) for r in by_seed.values()])
    out |= _spread("calls", [float(r["calls"]) for r in by_seed.values()])
    for name, mode in (
        ("vs_sync", "parallel_sync"),
        ("vs_single", "single_thread"),
        ("of_oracle", "oracle"),
        ("of_critical", "critical"),
    ):
        other: BySeed = next((rows for key, rows in setting.items() if key[0] == mode), {})
        seeds = {s for s in by_seed.keys() & other.keys() if float(by_seed[s]["elapsed_s"])}
        if seeds:  # an hour without calls takes no time and has no ratios
            ratio = [float(other[s]["elapsed_s"]) / float(by_seed[s]["elapsed_s"]) for s in sorted(seeds)]
            out |= _spread(name, ratio)
    return out


def _spread(name: str, values: list[float]) -> dict[str, float]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: round(statistics.fmean(values), 4), f"{name}_sd": round(spread, 4)}
