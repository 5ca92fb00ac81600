"""Bradley-Terry ratings from pairwise verdicts, with intervals from resampled questions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixattn.evals.arena.stats.ranking import Options, rank_models
from mixattn.evals.arena.stats.votes import FIRST_WINS, SECOND_WINS, TIE, from_arrays
from mixattn.evals.judge.lines import Row
from mixattn.evals.judge.tables import verdict

OUTCOMES = {"model_1": FIRST_WINS, "model_2": SECOND_WINS, "tie": TIE}
STRONG = ("[[A>>B]]", "[[B>>A]]")


def rank(
    rows: Sequence[Row], *, resamples: int = 1000, seed: int = 0, strong_wins: int = 3
) -> dict[str, Any]:
    """The report of `arena fit` on conservative verdicts; rows without verdict are left out.

    Verdicts on one question are dependent, so whole questions are resampled.

    Args:
      strong_wins: votes that a win counts as if both orders gave it a strong label ([[A>>B]] or [[B>>A]]).

    Raises:
      ValueError: the verdicts determine no finite ratings.
    """
    judged = [row for row in rows if verdict(row) != "error" for _ in range(_copies(row, strong_wins))]
    if not judged:
        raise ValueError(f"none of {len(rows)} pairs has a verdict, so there is nothing to rank")
    names = tuple(sorted({row[side] for row in judged for side in ("model_1", "model_2")}))
    place = {name: i for i, name in enumerate(names)}
    votes = from_arrays(
        names,
        [place[row["model_1"]] for row in judged],
        [place[row["model_2"]] for row in judged],
        [OUTCOMES[verdict(row)] for row in judged],
        question_id=np.array([str(row.get("question_id")) for row in judged]),
    )
    options = Options(intervals="bootstrap", cluster="question_id", resamples=resamples, seed=seed)
    return rank_models(votes, options)


def _copies(row: Row, strong_wins: int) -> int:
    strong = all(row.get(f"{game}_label") in STRONG for game in ("g1", "g2"))
    return strong_wins if strong and verdict(row) != "tie" else 1
