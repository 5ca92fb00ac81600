"""The table: medians over rounds, ratios of them, and whether the goals are met."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from serving.bench import Row, row
from serving.bench.real.cases import CASES, Case
from serving.bench.real.measuring import Measurements
from serving.bench.real.sides import SIDES

FIGURES = {
    "first_s": ("first token", 1e3, "ms"),
    "step_s": ("decode step", 1e3, "ms"),
    "tok_per_s": ("throughput", 1, "tok/s"),
}
INT8, FLOAT = "ours, int8", "ours, float32"
OPENVINO, LLAMA = "OpenVINO GenAI, defaults", "llama.cpp, float32"


class RatioGoal(NamedTuple):
    """`figure` of one side over that of the other, so that more is better for the first."""

    cores: int
    case: str
    figure: str
    ours: str
    theirs: str
    goal: str


GOALS = [
    RatioGoal(2, "sixteen", "tok_per_s", INT8, FLOAT, ">= 2.3"),
    RatioGoal(2, "one", "step_s", INT8, FLOAT, ">= 1.7"),
    RatioGoal(2, "one", "first_s", INT8, FLOAT, ">= 2.5"),
    RatioGoal(2, "sixteen", "first_s", INT8, FLOAT, ">= 2.5"),
    RatioGoal(2, "sixteen", "tok_per_s", INT8, OPENVINO, ">= 0.9"),
    RatioGoal(2, "thirtytwo", "tok_per_s", INT8, OPENVINO, ">= 0.9"),
    RatioGoal(2, "one", "step_s", INT8, OPENVINO, ">= 0.6"),
    RatioGoal(1, "one", "step_s", FLOAT, LLAMA, ">= 0.95"),
    RatioGoal(1, "sixteen", "step_s", FLOAT, LLAMA, ">= 1.5"),
    RatioGoal(1, "one", "first_s", FLOAT, LLAMA, ">= 2.0"),
]


def table(kept: Measurements) -> Iterator[Row]:
    """Every figure that was measured, then every ratio whose sides were."""
    yield from _starts(kept)
    for cores in (1, 2):
        for case in CASES.values():
            for side in SIDES:
                yield from _of_side(kept, cores, case, side)
    for goal in GOALS:
        yield from _ratio(kept, goal)
    yield from _others(kept)


def _where(cores: int) -> str:
    return f"{cores} core{'s' * (cores > 1)}"


def _starts(kept: Measurements) -> Iterator[Row]:
    for cores in (1, 2):
        for side in SIDES:
            found: dict[str, list[float]] = {}
            for r in kept.rows:
                if (r["kind"], r["side"], r["cores"]) == ("start", side, cores):
                    found.setdefault(r["versions"], []).append(r["start_s"])
            for versions, seconds in found.items():
                yield row("real", f"{_where(cores)}, {side}: start", median(seconds), "s", versions)
    for r in {(r["side"], r["why"]): r for r in kept.rows if r["kind"] == "error"}.values():
        yield row("real", f"{_where(r['cores'])}, {r['side']}: failed", 0, "", r["why"])


def _of_side(kept: Measurements, cores: int, case: Case, side: str) -> Iterator[Row]:
    rounds = kept.rounds(side, case.name, cores)
    for name, (words, factor, unit) in FIGURES.items():
        values = [factor * r[name] for r in rounds if r[name] is not None]
        if values and not (name == "tok_per_s" and case.requests == 1):
            detail = f"{len(values)} rounds, {min(values):.4g} to {max(values):.4g}"
            yield row(
                "real", f"{_where(cores)}, {case.describe()}, {side}: {words}", median(values), unit, detail
            )


def _ratio(kept: Measurements, wanted: RatioGoal) -> Iterator[Row]:
    value = ratio(kept, wanted)
    if value is not None:
        words = FIGURES[wanted.figure][0]
        where = f"{_where(wanted.cores)}, {CASES[wanted.case].describe()}"
        name = f"{where}: {words}, {wanted.ours} over {wanted.theirs}"
        yield row("real", name, value, "times as fast", goal=wanted.goal)


def ratio(kept: Measurements, wanted: RatioGoal) -> float | None:
    """How many times as fast the first side is, by medians; None if one was not measured."""
    pair = [_median(kept, side, wanted) for side in (wanted.ours, wanted.theirs)]
    if pair[0] is None or pair[1] is None:
        return None
    return pair[0] / pair[1] if wanted.figure == "tok_per_s" else pair[1] / pair[0]


def _median(kept: Measurements, side: str, wanted: RatioGoal) -> float | None:
    rounds = kept.rounds(side, wanted.case, wanted.cores)
    values = [r[wanted.figure] for r in rounds if r[wanted.figure] is not None]
    return median(values) if values else None


def _others(kept: Measurements) -> Iterator[Row]:
    """Ours over every other side at the same precision, won or lost."""
    pairs: Sequence[tuple[str, Callable[[str], bool]]] = [
        (FLOAT, lambda side: side.endswith("float32") and side != FLOAT),
        (INT8, lambda side: not side.endswith("float32") and side != INT8),
    ]
    asked = {goal[:5] for goal in GOALS}
    for ours, fits in pairs:
        for cores in (1, 2):
            for case in CASES.values():
                figures = ("first_s", "step_s") if case.requests == 1 else tuple(FIGURES)
                for figure in figures:
                    for theirs in filter(fits, SIDES):
                        wanted = RatioGoal(cores, case.name, figure, ours, theirs, "")
                        if wanted[:5] not in asked:
                            yield from _ratio(kept, wanted)
