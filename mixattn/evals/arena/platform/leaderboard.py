"""The leaderboard as a pure function of the votes that count, kept until a further vote counts."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixattn.evals.arena.platform.store import ArenaStore
from mixattn.evals.arena.stats.anomalies import find_anomalies
from mixattn.evals.arena.stats.bradley_terry import fit
from mixattn.evals.arena.stats.connected import check_connected
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.influence import cap_weights, leave_one_out
from mixattn.evals.arena.stats.ranking import PER_UNIT, Options, numbered, rank_models
from mixattn.evals.arena.stats.votes import LABELS, Votes, from_arrays
from mixattn.evals.arena.stats.win_matrix import rows_of, win_matrix


def as_votes(records: list[dict[str, Any]]) -> Votes:
    """Stored votes as arrays, with the column `judge`.

    Raises:
      ValueError: there is none.
    """
    if not records:
        raise ValueError("no votes that count yet")
    models = tuple(sorted({r[side] for r in records for side in ("model_a", "model_b")}))
    place = {name: i for i, name in enumerate(models)}
    columns = ([place[r["model_a"]] for r in records], [place[r["model_b"]] for r in records])
    judge = np.array([r["judge"] for r in records], dtype=object)
    return from_arrays(models, *columns, [LABELS[r["winner"]] for r in records], judge=judge)


@dataclass(frozen=True)
class Standings:
    """A leaderboard: `models` as `arena fit` reports them, pairs of the win matrix, or why there is no
    ranking."""

    votes: int
    models: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    why_not: str = ""


def make_board(records: list[dict[str, Any]], cap: float) -> Standings:
    """Ranks votes with intervals clustered by voter; no voter counts for more than `cap` votes."""
    try:
        votes = as_votes(records)
    except ValueError as why:
        return Standings(0, [], [], str(why))
    pairs = rows_of(win_matrix(count(votes)), votes.models)
    try:
        report = rank_models(votes, Options(cluster="judge"), cap)
    except ValueError as why:
        return Standings(len(votes), [], pairs, f"too few votes for a ranking: {why}")
    return Standings(len(votes), report["models"], pairs)


class Leaderboards:
    """Boards by category and language, recomputed when a further vote counts."""

    def __init__(self, store: ArenaStore, cap: float):
        self._store, self._cap = store, cap
        self._version: tuple[int, int] | None = None
        self._records: list[dict[str, Any]] = []
        self._boards: dict[tuple[str, str], Standings] = {}
        self._lock = threading.Lock()

    def get(self, category: str = "", language: str = "") -> Standings:
        """The board of one category and language; "" is all of them."""
        with self._lock:
            version = self._store.version()
            if version != self._version:
                self._version, self._boards = version, {}
                self._records = self._store.votes(counted=True)
            key = (category, language)
            if key not in self._boards:
                chosen = [
                    r
                    for r in self._records
                    if category in ("", r["category"]) and language in ("", r["language"])
                ]
                self._boards[key] = make_board(chosen, self._cap)
            return self._boards[key]

    def choices(self, column: str) -> list[str]:
        """The values of a column among the votes that count."""
        self.get()
        return sorted({r[column] for r in self._records if r[column]})

    def voters(self) -> list[dict[str, Any]]:
        """Every voter: votes, largest rating change without them (Elo points), left share, flagged or not.

        Sorted by influence. Empty while there is no ranking.
        """
        records = self._store.votes(counted=True)
        try:
            votes = as_votes(records)
            weights = cap_weights(numbered(votes.columns["judge"]), self._cap)
            counts = count(votes, weights)
            check_connected(counts, votes.models)
        except ValueError:
            return []
        voter = numbered(votes.columns["judge"])
        moved = PER_UNIT * np.abs(leave_one_out(votes, weights, fit(counts), voter)).max(axis=1)
        rng = np.random.default_rng(0)
        found = find_anomalies(votes, rule="betting", alpha=0.05, rng=rng)
        flagged = {verdict.voter for verdict in found if verdict.flagged}
        names = dict(zip(voter.tolist(), votes.columns["judge"].tolist()))
        left = np.bincount(voter, votes.outcome == 2) / np.bincount(voter)
        rows = [
            {
                "voter": names[v],
                "votes": int((voter == v).sum()),
                "moves": float(moved[v]),
                "left": float(left[v]),
                "flagged": names[v] in flagged,
            }
            for v in range(len(names))
        ]
        return sorted(rows, key=lambda row: -row["moves"])
