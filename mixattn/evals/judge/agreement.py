"""How often two judges agree (Zheng et al. 2023, section 4), with Cohen's kappa and intervals by question.

A cell is a question, a turn and an unordered pair of models. Every vote of one judge in a cell is compared
with every vote of the other; of one kind of judge with itself, every two votes. Labels that hold "tie" are
equal.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixattn.evals.judge.lines import Row, read_existing_rows
from mixattn.evals.judge.parsing import NO_RATING, TIE_DELTA
from mixattn.evals.judge.tables import read_judgments, verdict

REVERSED = {"model_a": "model_b", "model_b": "model_a"}


@dataclass(frozen=True)
class JudgeVote:
    """One vote, its models in sorted order. `judges`: every name that its judge goes by."""

    question: Any
    turn: int
    models: tuple[str, str]
    winner: str
    judges: frozenset[str]


def read_votes(path: Path) -> list[JudgeVote]:
    """Votes from human votes, or from a pairwise or single judgment file; rows without verdict are left out.

    Raises:
      ValueError: the file or a row is wrong.
    """
    first = read_existing_rows(path)[0]
    if "g1_winner" in first:
        return list(_of_pairs(read_judgments(path, "pair")))
    if "score" in first:
        return list(_of_singles(read_judgments(path, "single")))
    return [_human(f"{path}, row {n}", row) for n, row in enumerate(read_existing_rows(path), 1)]


def names_of(judge: Any) -> frozenset[str]:
    """Names that a file's `judge` goes by: itself and its kind.

    ["gpt-4", "pair-v2"] is gpt-4, gpt-4-pair and, as the format calls it, gpt4-pair; "expert_7" is expert_7
    and human; "author_2" is author_2 and author.
    """
    if isinstance(judge, list):
        model, template = str(judge[0]), str(judge[1]) if len(judge) > 1 else ""
        kind = (
            "single" if template.startswith("single") else "pair" if template.startswith("pair") else template
        )
        names = {model, f"{model}-{kind}"}
        return frozenset(names | ({f"gpt4-{kind}"} if model == "gpt-4" else set()))
    kinds = {"expert": "human", "author": "author"}
    return frozenset({str(judge)} | {kind for prefix, kind in kinds.items() if str(judge).startswith(prefix)})


def _vote(row: Row, turn: int, a: str, b: str, winner: str, judge: Any) -> JudgeVote:
    if a > b:
        a, b, winner = b, a, REVERSED.get(winner, winner)
    return JudgeVote(row["question_id"], turn, (a, b), "tie" if "tie" in winner else winner, names_of(judge))


def _human(where: str, row: Row) -> JudgeVote:
    for name in ("question_id", "model_a", "model_b", "winner", "judge", "turn"):
        if name not in row:
            raise ValueError(f"{where}: the field {name!r} of a vote is missing")
    winner = row["winner"]
    if winner not in REVERSED and not (isinstance(winner, str) and winner.startswith("tie")):
        raise ValueError(f"{where}: winner is {winner!r}, not model_a, model_b or a tie")
    for side in ("model_a", "model_b"):
        if not isinstance(row[side], str) or not row[side]:
            raise ValueError(f"{where}: {side} is {row[side]!r}, not a model's name")
    if row["model_a"] == row["model_b"]:
        raise ValueError(f"{where}: model_a and model_b are both {row['model_a']!r}")
    if row["turn"] not in (1, 2) or isinstance(row["turn"], bool):
        raise ValueError(f"{where}: turn is {row['turn']!r}, neither 1 nor 2")
    return _vote(row, row["turn"], row["model_a"], row["model_b"], winner, row["judge"])


def _of_pairs(rows: Sequence[Row]) -> Iterator[JudgeVote]:
    winners = {"model_1": "model_a", "model_2": "model_b", "tie": "tie"}
    for row in rows:
        if (won := verdict(row)) != "error":
            yield _vote(row, row["turn"], row["model_1"], row["model_2"], winners[won], row["judge"])


def _of_singles(rows: Sequence[Row]) -> Iterator[JudgeVote]:
    """Two models' scores for one question make a vote; scores within 0.1 are a tie."""
    cells: dict[tuple[Any, int, str], list[Row]] = {}
    for row in rows:
        if row["score"] != NO_RATING:
            cells.setdefault((row["question_id"], row["turn"], str(row["judge"])), []).append(row)
    for cell in cells.values():
        for one, other in itertools.combinations(cell, 2):
            if one["model"] != other["model"]:
                gap = one["score"] - other["score"]
                winner = "tie" if abs(gap) <= TIE_DELTA else "model_a" if gap > 0 else "model_b"
                yield _vote(one, one["turn"], one["model"], other["model"], winner, one["judge"])


type PairOfVotes = tuple[Any, str, str]  # question, winner by judge 1, winner by judge 2


def compared(votes: Sequence[JudgeVote], judge_1: str, judge_2: str, turn: int) -> list[PairOfVotes]:
    """Every pair of votes that the two judges cast in one cell."""
    cells: dict[tuple[Any, tuple[str, str]], list[JudgeVote]] = {}
    for vote in votes:
        if vote.turn == turn:
            cells.setdefault((vote.question, vote.models), []).append(vote)
    found = []
    for (question, _), cell in cells.items():
        ones = [vote for vote in cell if judge_1 in vote.judges]
        if judge_1 == judge_2:
            pairs: Iterator[tuple[JudgeVote, JudgeVote]] = itertools.combinations(ones, 2)
        else:
            others = [vote for vote in cell if judge_2 in vote.judges]
            pairs = ((a, b) for a in ones for b in others if a is not b)
        found += [(question, a.winner, b.winner) for a, b in pairs]
    return found


def agreement(
    pairs: Sequence[PairOfVotes], *, ties: bool, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Agreeing pairs of votes among all, or among those where neither is a tie.

    Returns:
      agree, total, ratio (None without pairs), kappa (Cohen's; None where chance agreement is certain), and
      the 95 % interval of the ratio: percentiles over resampled questions, since votes on one question are
      dependent.
    """
    kept = [pair for pair in pairs if ties or "tie" not in pair[1:]]
    agree, total = sum(one == other for _, one, other in kept), len(kept)
    lower, upper = _interval(kept, resamples, seed)
    return {
        "agree": agree,
        "total": total,
        "ratio": agree / total if total else None,
        "kappa": _kappa(kept),
        "lower": lower,
        "upper": upper,
    }


def _kappa(pairs: Sequence[PairOfVotes]) -> float | None:
    if not pairs:
        return None
    n = len(pairs)
    ones, others = Counter(one for _, one, _ in pairs), Counter(other for _, _, other in pairs)
    chance = sum(ones[label] * others[label] for label in ones) / n**2
    if chance == 1:
        return None
    return (sum(one == other for _, one, other in pairs) / n - chance) / (1 - chance)


def _interval(pairs: Sequence[PairOfVotes], resamples: int, seed: int) -> tuple[float | None, float | None]:
    if not pairs:
        return None, None
    numbers = {question: i for i, question in enumerate(dict.fromkeys(pair[0] for pair in pairs))}
    counts = np.zeros((len(numbers), 2))
    for question, one, other in pairs:
        counts[numbers[question]] += (one == other, 1)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    agree, total = np.moveaxis(counts[drawn].sum(axis=1), -1, 0)
    lower, upper = np.percentile(agree / total, [2.5, 97.5])
    return float(lower), float(upper)


def both_turns(votes: Sequence[JudgeVote], judge_1: str, judge_2: str, seed: int = 0) -> dict[str, Any]:
    """turn_1 and turn_2, each with_ties and without_ties."""
    result = {}
    for turn in (1, 2):
        pairs = compared(votes, judge_1, judge_2, turn)
        result[f"turn_{turn}"] = {
            "with_ties": agreement(pairs, ties=True, seed=seed),
            "without_ties": agreement(pairs, ties=False, seed=seed),
        }
    return result


def by_category(
    votes: Sequence[JudgeVote], judge_1: str, judge_2: str, category: Mapping[Any, str]
) -> dict[str, Any]:
    """category -> `both_turns` of its questions."""
    return {
        name: both_turns([vote for vote in votes if category.get(vote.question) == name], judge_1, judge_2)
        for name in sorted(set(category.values()))
    }


def check_judges(votes: Sequence[JudgeVote], judges: Sequence[str]) -> None:
    """
    Raises:
      ValueError: a judge cast no vote.
    """
    known = {name for vote in votes for name in vote.judges}
    for judge in judges:
        if judge not in known:
            raise ValueError(f"judge {judge!r} cast no vote; the files hold {', '.join(sorted(known))}")
