"""The leaderboard as a pure function of the votes that count, kept until a further vote counts."""

import contextlib
import functools
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixattn.evals.arena.platform.counted import CountedVotes, Snapshot
from mixattn.evals.arena.platform.store import ArenaStore
from mixattn.evals.arena.stats.anomalies import find_anomalies
from mixattn.evals.arena.stats.bradley_terry import fit
from mixattn.evals.arena.stats.connected import check_connected
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.influence import cap_weights, leave_one_out, limit_influence
from mixattn.evals.arena.stats.ranking import FEW_CLUSTERS, PER_UNIT, Options, numbered, rank_models
from mixattn.evals.arena.stats.votes import FIRST_WINS
from mixattn.evals.arena.stats.win_matrix import rows_of, win_matrix

DAY_S = 86_400.0
QUICK_S = 0.05  # boards that take longer are kept for REST times as long, whatever is voted meanwhile
REST = 20.0
MAX_BOARDS = 500  # names of categories come from visitors; what is kept is bounded


@dataclass(frozen=True)
class Standings:
    """A leaderboard.

    Attributes:
      models: as `arena fit` reports them; with style control also `places_without`, the range without it.
      pairs: of the win matrix.
      why_not: why there is no ranking.
      largest_move: Elo points by which one voter moves some rating at most, where that is limited.
      style: coefficients of style control.
      few_voters: too few for intervals that mean much.
    """

    votes: int
    models: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    why_not: str = ""
    largest_move: float | None = None
    style: dict[str, Any] = field(default_factory=dict)
    few_voters: bool = False

    @property
    def names(self) -> list[str]:
        """All models with votes, the best first where there is a ranking."""
        ranked = [m["model"] for m in self.models]
        return ranked or sorted({p[side] for p in self.pairs for side in ("model_a", "model_b")})

    def cell(self, row: str, column: str) -> dict[str, Any] | None:
        """The pair of the win matrix, seen from `row`; None if they never met."""
        if (pair := self._by_models.get((row, column))) is not None:
            return pair
        if (pair := self._by_models.get((column, row))) is None:
            return None
        turned = {"lower": 1 - pair["upper"], "upper": 1 - pair["lower"]}
        return pair | turned | {"win_rate": 1 - pair["win_rate"]}

    @functools.cached_property
    def _by_models(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {(pair["model_a"], pair["model_b"]): pair for pair in self.pairs}


@dataclass(frozen=True)
class Counting:
    """How votes are weighed: no voter for more than `cap` votes, nor moving a rating by more than `max_move`
    Elo points (0: no limit)."""

    cap: float
    max_move: float = 0.0


def make_board(
    taken: Snapshot,
    chosen: NDArray[np.bool_],
    counting: Counting,
    *,
    style: bool = False,
    pairs: bool = True,
) -> Standings:
    """Ranks the chosen votes with intervals clustered by voter."""
    try:
        votes = taken.votes(chosen, styled=style)
    except ValueError as why:
        return Standings(0, [], [], str(why))
    matrix = rows_of(win_matrix(count(votes)), votes.models) if pairs else []
    try:
        report = rank_models(votes, Options(cluster="judge", style=style), counting.cap, counting.max_move)
    except ValueError as why:
        return Standings(len(votes), [], matrix, f"too few votes for a ranking: {why}")
    models = report["models"]
    if style:
        plain = {m["model"]: m["rank"] for m in make_board(taken, chosen, counting, pairs=False).models}
        models = [m | {"places_without": plain.get(m["model"])} for m in models]
    moved = report.get("largest_move")
    few = report["clusters"] < FEW_CLUSTERS
    return Standings(len(votes), models, matrix, "", moved, report.get("style", {}), few)


EMPTY = Standings(0, [], [], "no votes that count yet")


class Leaderboards:
    """Boards by category and language, recomputed when a further vote counts."""

    def __init__(self, store: ArenaStore, cap: float, max_move: float = 0.0):
        self._store, self._counting = store, Counting(cap, max_move)
        self._counted = CountedVotes(store.reader)
        self._taken: Snapshot | None = None
        self._boards: dict[tuple[str, str, bool], Standings] = {}
        self._days: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._took_s, self._at_s = 0.0, 0.0

    def close(self) -> None:
        with self._lock:
            self._counted.close()

    def get(self, category: str = "", language: str = "", *, style: bool = False) -> Standings:
        """The board of one category and language; "" is all of them."""
        key = (category, language, style)
        old = self._boards.get(key)
        if old is not None and not self._lock.acquire(blocking=False):
            return old  # somebody computes the next one
        if old is None:
            self._lock.acquire()
        try:
            began_s = time.monotonic()
            taken = self._refresh()
            if any(x and x not in taken.present[n] for n, x in zip(("category", "language"), key)):
                return EMPTY  # an address that somebody made up
            if key not in self._boards and len(self._boards) < MAX_BOARDS:
                chosen = taken.where(category, language)
                self._boards[key] = make_board(taken, chosen, self._counting, style=style)
                self._took_s = max(self._took_s, time.monotonic() - began_s)
            return self._boards.get(key, EMPTY)
        finally:
            self._lock.release()

    def _refresh(self) -> Snapshot:
        """The votes that count now. What takes long is not done again at once: votes and pages of a busy
        arena need the processor too."""
        now_s = time.monotonic()
        if self._taken is not None and self._took_s > QUICK_S and now_s - self._at_s < REST * self._took_s:
            return self._taken
        taken, excluded = self._counted.snapshot()
        if excluded:
            self._days = {}  # past days change too
        if taken is not self._taken:
            self._taken, self._boards, self._at_s = taken, {}, now_s
            self._took_s = time.monotonic() - now_s
        return taken

    def latest(self) -> Snapshot | None:
        """The votes that counted when a board was made last; at once, for the event loop."""
        return self._taken

    def counted(self) -> Snapshot:
        """The votes that count now."""
        with self._lock:
            return self._refresh()

    def choices(self, column: str) -> list[str]:
        """The values of a column among the votes of the boards, "category" or "language"."""
        return self._taken.present[column] if self._taken is not None else []

    def history(self, days: int = 60) -> list[dict[str, Any]]:
        """`day` (seconds since 1970, UTC midnight at its end), `votes` and `models` of the last days with
        votes, oldest first: each ranked from the votes that counted by then. Past days are kept."""
        with self._lock:
            taken = self._refresh()
            ends = (taken.counts_s // DAY_S).astype(np.int64) + 1
            today = int(time.time() // DAY_S) + 1
            found = []
            for end in np.unique(ends)[-days:].tolist():
                if end == today or end not in self._days:
                    chosen = taken.where(until_s=end * DAY_S)
                    models = make_board(taken, chosen, self._counting, pairs=False).models
                    self._days[end] = {"day": end * DAY_S, "votes": int(chosen.sum()), "models": models}
                found.append(self._days[end])
            return found

    def voters(self) -> list[dict[str, Any]]:
        """Every voter: votes, largest rating change without them (Elo points), left share, flagged or not.

        Sorted by influence. Empty while there is no ranking. See `honeypots` for what honeypot battles tell.
        """
        taken = self.counted()
        try:
            votes = taken.votes(taken.where())
            voter = numbered(votes.columns["judge"])
            weights = cap_weights(voter, self._counting.cap)
            counts = count(votes, weights)
            check_connected(counts, votes.models)
        except ValueError:
            return []
        if self._counting.max_move:
            limit = self._counting.max_move / PER_UNIT
            weights, _ = limit_influence(votes, voter, limit, weights)
            counts = count(votes, weights)
        moved = PER_UNIT * np.abs(leave_one_out(votes, weights, fit(counts), voter)).max(axis=1)
        rng = np.random.default_rng(0)
        found = find_anomalies(votes, rule="betting", alpha=0.05, rng=rng)
        flagged = {verdict.voter for verdict in found if verdict.flagged}
        cast = np.bincount(voter)
        left = np.bincount(voter, votes.outcome == FIRST_WINS) / cast
        rows = [
            {
                "voter": taken.voters[number],
                "votes": int(cast[v]),
                "moves": float(moved[v]),
                "left": float(left[v]),
                "flagged": str(number) in flagged,
            }
            for v, number in enumerate(np.unique(votes.columns["judge"]).tolist())
        ]
        return sorted(rows, key=lambda row: -row["moves"])

    def honeypots(self) -> list[dict[str, Any]]:
        """Every voter with votes in honeypot battles: how many, and how many were wrong.

        Of a model against itself a vote for a side is wrong with probability 1/2 if honest answers differ,
        and left every time if the voter does not look; against a known-broken model a vote for it is wrong.
        """
        found: dict[str, dict[str, Any]] = {}
        with contextlib.closing(self._store.reader()) as reader:
            broken = {row["name"] for row in reader.models() if row["broken"]}
            votes = list(reader.votes(honeypots=True))
        for vote in votes:
            row = found.setdefault(
                vote["judge"], {"voter": vote["judge"], "same": 0, "left": 0, "broken": 0, "for_broken": 0}
            )
            if vote["honeypot"] == "broken":
                row["broken"] += 1
                row["for_broken"] += vote["winner"].startswith("model_") and vote[vote["winner"]] in broken
            else:
                row["same"] += 1
                row["left"] += vote["winner"] == "model_a"
        return sorted(found.values(), key=lambda row: (-row["for_broken"], -row["left"], row["voter"]))
