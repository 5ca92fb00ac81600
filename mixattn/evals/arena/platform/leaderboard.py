"""The leaderboard as a pure function of the votes that count, kept until a further vote counts."""

import bisect
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixattn.evals.arena.platform.store import ArenaStore
from mixattn.evals.arena.stats.anomalies import find_anomalies
from mixattn.evals.arena.stats.bradley_terry import fit
from mixattn.evals.arena.stats.connected import check_connected
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.influence import cap_weights, leave_one_out, limit_influence
from mixattn.evals.arena.stats.ranking import FEW_CLUSTERS, PER_UNIT, Options, numbered, rank_models
from mixattn.evals.arena.stats.votes import LABELS, Votes, from_arrays
from mixattn.evals.arena.stats.win_matrix import rows_of, win_matrix

DAY_S = 86_400.0
QUICK_S = 0.05  # boards that take longer are kept for REST times as long, whatever is voted meanwhile
REST = 20.0
MAX_BOARDS = 500  # names of categories come from visitors; what is kept is bounded


def as_votes(records: Sequence[dict[str, Any]], *, style: bool = False) -> Votes:
    """Stored votes as arrays, with the column `judge`, and with `style` only votes with style counts.

    Raises:
      ValueError: there is none.
    """
    if style:
        records = [record for record in records if record.get("conv_metadata")]
    if not records:
        raise ValueError("no votes that count yet")
    models = tuple(sorted({r[side] for r in records for side in ("model_a", "model_b")}))
    place = {name: i for i, name in enumerate(models)}
    columns = ([place[r["model_a"]] for r in records], [place[r["model_b"]] for r in records])
    judge = np.array([r["judge"] for r in records], dtype=object)
    extra = {"conv_metadata": np.array([r["conv_metadata"] for r in records], dtype=object)} if style else {}
    return from_arrays(models, *columns, [LABELS[r["winner"]] for r in records], judge=judge, **extra)


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
        for pair in self.pairs:
            if (pair["model_a"], pair["model_b"]) == (row, column):
                return pair
            if (pair["model_a"], pair["model_b"]) == (column, row):
                turned = {"lower": 1 - pair["upper"], "upper": 1 - pair["lower"]}
                return pair | turned | {"win_rate": 1 - pair["win_rate"]}
        return None


@dataclass(frozen=True)
class Counting:
    """How votes are weighed: no voter for more than `cap` votes, nor moving a rating by more than `max_move`
    Elo points (0: no limit)."""

    cap: float
    max_move: float = 0.0


def make_board(
    records: Sequence[dict[str, Any]], counting: Counting, *, style: bool = False, pairs: bool = True
) -> Standings:
    """Ranks votes with intervals clustered by voter."""
    try:
        votes = as_votes(records, style=style)
    except ValueError as why:
        return Standings(0, [], [], str(why))
    matrix = rows_of(win_matrix(count(votes)), votes.models) if pairs else []
    try:
        report = rank_models(votes, Options(cluster="judge", style=style), counting.cap, counting.max_move)
    except ValueError as why:
        return Standings(len(votes), [], matrix, f"too few votes for a ranking: {why}")
    models = report["models"]
    if style:
        plain = {m["model"]: m["rank"] for m in make_board(records, counting, pairs=False).models}
        models = [m | {"places_without": plain.get(m["model"])} for m in models]
    moved = report.get("largest_move")
    few = report["clusters"] < FEW_CLUSTERS
    return Standings(len(votes), models, matrix, "", moved, report.get("style", {}), few)


EMPTY = Standings(0, [], [], "no votes that count yet")


class Leaderboards:
    """Boards by category and language, recomputed when a further vote counts."""

    def __init__(self, store: ArenaStore, cap: float, max_move: float = 0.0):
        self._store, self._counting = store, Counting(cap, max_move)
        self._version: tuple[int, int, int] | None = None
        self._records: list[dict[str, Any]] = []
        self._boards: dict[tuple[str, str, bool], Standings] = {}
        self._days: dict[int, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._choices: dict[str, list[str]] = {}
        self._took_s, self._at_s = 0.0, 0.0

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
            self._refresh()
            if key not in self._boards and len(self._boards) < MAX_BOARDS:
                self._boards[key] = make_board(self._chosen(category, language), self._counting, style=style)
                self._took_s = max(self._took_s, time.monotonic() - began_s)
            return self._boards.get(key, EMPTY)
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        """Reads the votes anew if more count. What takes long is not done again at once: votes and pages of
        a busy arena need the processor too."""
        now_s = time.monotonic()
        if self._took_s > QUICK_S and now_s - self._at_s < REST * self._took_s:
            return
        version = self._store.version()
        if version != self._version:
            if self._version is not None and version[2] != self._version[2]:
                self._days = {}  # a voter was excluded: past days change too
            self._version, self._boards = version, {}
            self._records = self._store.votes(counted=True)
            self._choices = {
                name: sorted({r[name] for r in self._records if r[name]}) for name in ("category", "language")
            }
            self._at_s = now_s
            self._took_s = time.monotonic() - now_s

    def _chosen(self, category: str, language: str) -> list[dict[str, Any]]:
        return [
            r for r in self._records if category in ("", r["category"]) and language in ("", r["language"])
        ]

    def latest(self) -> list[dict[str, Any]]:
        """The votes that counted when a board was made last; at once, for the event loop."""
        return self._records

    def counted(self) -> list[dict[str, Any]]:
        """The votes that count now; may read them all anew."""
        with self._lock:
            self._refresh()
            return self._records

    def count(self) -> int:
        """How many votes count."""
        return len(self.counted())

    def choices(self, column: str) -> list[str]:
        """The values of a column among the votes of the boards, "category" or "language"; at once."""
        return self._choices.get(column, [])

    def history(self, days: int = 60) -> list[dict[str, Any]]:
        """`day` (seconds since 1970, UTC midnight at its end), `votes` and `models` of the last days with
        votes, oldest first: each ranked from the votes that counted by then. Past days are kept."""
        with self._lock:
            self._refresh()
            records = sorted(self._records, key=lambda r: r["counts_s"])
            ends = [int(r["counts_s"] // DAY_S) + 1 for r in records]
            today = int(time.time() // DAY_S) + 1
            found = []
            for end in sorted(set(ends))[-days:]:
                if end == today or end not in self._days:
                    until = records[: bisect.bisect_right(ends, end)]
                    self._days[end] = [{"day": end * DAY_S, "votes": len(until)}]
                    self._days[end][0]["models"] = make_board(until, self._counting, pairs=False).models
                found += self._days[end]
            return found

    def voters(self) -> list[dict[str, Any]]:
        """Every voter: votes, largest rating change without them (Elo points), left share, flagged or not.

        Sorted by influence. Empty while there is no ranking. See `honeypots` for what honeypot battles tell.
        """
        records = self._store.votes(counted=True)
        try:
            votes = as_votes(records)
            weights = cap_weights(numbered(votes.columns["judge"]), self._counting.cap)
            counts = count(votes, weights)
            check_connected(counts, votes.models)
        except ValueError:
            return []
        if self._counting.max_move:
            limit = self._counting.max_move / PER_UNIT
            weights, _ = limit_influence(votes, numbered(votes.columns["judge"]), limit, weights)
            counts = count(votes, weights)
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

    def honeypots(self) -> list[dict[str, Any]]:
        """Every voter with votes in honeypot battles: how many, and how many were wrong.

        Of a model against itself a vote for a side is wrong with probability 1/2 if honest answers differ,
        and left every time if the voter does not look; against a known-broken model a vote for it is wrong.
        """
        found: dict[str, dict[str, Any]] = {}
        broken = {row["name"] for row in self._store.models() if row["broken"]}
        for vote in self._store.votes(counted=False):
            if not vote["honeypot"]:
                continue
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
