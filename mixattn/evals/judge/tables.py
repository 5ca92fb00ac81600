"""Scores and win rates from judgment files, as FastChat's `show_result` computes them.

A pair counts as won only if both orders name the same model; two different winners are a tie (Zheng et al.
2023, section 3.4).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mixattn.evals.judge.lines import Row, read_existing_rows
from mixattn.evals.judge.parsing import NO_RATING

WINNERS = ("model_1", "model_2", "tie", "error")


def read_judgments(path: Path, kind: str) -> list[Row]:
    """The rows of a judgment file; `kind` is "single" or "pair".

    Raises:
      ValueError: the file is missing or empty, or a row is not such a judgment.
    """
    rows = read_existing_rows(path)
    for number, row in enumerate(rows, 1):
        (_check_single if kind == "single" else _check_pair)(f"{path}, row {number}", row)
    return rows


def _check_single(where: str, row: Row) -> None:
    _check_fields(where, row, ("model", "score", "turn"), "single")
    score = row["score"]
    if not isinstance(score, int | float) or isinstance(score, bool) or score != score:
        raise ValueError(f"{where}: score is {score!r}, not a number")
    _check_turn(where, row)


def _check_pair(where: str, row: Row) -> None:
    _check_fields(where, row, ("model_1", "model_2", "g1_winner", "g2_winner", "turn"), "pairwise")
    for game in ("g1_winner", "g2_winner"):
        if row[game] not in WINNERS:
            raise ValueError(f"{where}: {game} is {row[game]!r}, not one of {', '.join(WINNERS)}")
    if row["model_1"] == row["model_2"]:
        raise ValueError(f"{where}: model_1 and model_2 are both {row['model_1']!r}")
    _check_turn(where, row)


def _check_fields(where: str, row: Row, names: Sequence[str], kind: str) -> None:
    for name in names:
        if name not in row:
            raise ValueError(f"{where}: the field {name!r} of a {kind} judgment is missing")
    for name in names:
        if name.startswith("model") and not (isinstance(row[name], str) and row[name]):
            raise ValueError(f"{where}: {name} is {row[name]!r}, not a model's name")


def _check_turn(where: str, row: Row) -> None:
    if row["turn"] not in (1, 2) or isinstance(row["turn"], bool):
        raise ValueError(f"{where}: turn is {row['turn']!r}, neither 1 nor 2")


def single(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean scores by turn and over all judgments (not the mean of the turns' means); -1 counts nowhere.

    Returns:
      turn_1, turn_2, average: model -> mean, best first; unparsed: model -> replies without rating.
    """
    scored = [row for row in rows if row["score"] != NO_RATING]
    unparsed = Counter({row["model"]: 0 for row in rows})
    unparsed.update(row["model"] for row in rows if row["score"] == NO_RATING)
    return {
        "turn_1": _means(row for row in scored if row["turn"] == 1),
        "turn_2": _means(row for row in scored if row["turn"] == 2),
        "average": _means(scored),
        "unparsed": dict(sorted(unparsed.items())),
    }


def _means(rows: Iterable[Row]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["model"], []).append(row["score"])
    means = {model: sum(each) / len(each) for model, each in scores.items()}
    return dict(sorted(means.items(), key=lambda item: (-item[1], item[0])))


def verdict(row: Row) -> str:
    """model_1, model_2, tie, or error if either order has no verdict."""
    if "error" in (row["g1_winner"], row["g2_winner"]):
        return "error"
    return row["g1_winner"] if row["g1_winner"] == row["g2_winner"] else "tie"


def pairwise(rows: Sequence[Row], baseline: str = "") -> dict[str, Any]:
    """Wins, losses, ties and their rates of each model; with a baseline, those of its rivals against it.

    Returns:
      errors: rows without a verdict in both orders, which count nowhere else; models: best adjusted rate
      first.

    Raises:
      ValueError: the baseline is in no row.
    """
    names = {row[side] for row in rows for side in ("model_1", "model_2")}
    if baseline and baseline not in names:
        raise ValueError(f"--baseline={baseline} is in no row; the models are {', '.join(sorted(names))}")
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if (won := verdict(row)) == "error" or (
            baseline and baseline not in (row["model_1"], row["model_2"])
        ):
            continue
        for side in ("model_1", "model_2"):
            outcome = "tie" if won == "tie" else "win" if won == side else "loss"
            counts.setdefault(row[side], Counter())[outcome] += 1
    counts.pop(baseline, None)
    models = {name: _rates(each) for name, each in counts.items()}
    order = sorted(models, key=lambda name: (-models[name]["win_rate_adjusted"], name))
    errors = sum(verdict(row) == "error" for row in rows)
    return {"errors": errors, "models": {name: models[name] for name in order}}


def _rates(count: Counter[str]) -> dict[str, float]:
    win, loss, tie = count["win"], count["loss"], count["tie"]
    n = win + loss + tie
    rates = {"win_rate": win / n, "loss_rate": loss / n, "win_rate_adjusted": (win + 0.5 * tie) / n}
    return {"win": win, "loss": loss, "tie": tie, **rates}
