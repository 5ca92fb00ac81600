"""The votes that count, as columns in memory, kept up to date by reading only votes that are new."""

import functools
import json
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixattn.evals.arena.platform.reader import ArenaReader
from mixattn.evals.arena.stats import style
from mixattn.evals.arena.stats.counts import Floats, Ints
from mixattn.evals.arena.stats.votes import LABELS, Votes, from_arrays

BATCH = 5_000  # votes read at once; between batches other threads have their turn


class Names:
    """Names numbered in the order of their appearance."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self._place.setdefault(name, len(self._place))

    def find(self, name: str) -> int:
        """The number, or -1."""
        return self._place.get(name, -1)

    def all(self) -> list[str]:
        return list(self._place)


@dataclass(frozen=True)
class Snapshot:
    """Votes that count at one moment, in the order of their casting.

    Attributes:
      models, voters, categories, languages: names; the columns (n,) hold their numbers.
      counts_s: (n,) since when each counts.
      style: (n, 4) differences in style, NaN where a vote lacks them.
    """

    models: list[str]
    voters: list[str]
    categories: list[str]
    languages: list[str]
    first: Ints
    second: Ints
    outcome: Ints
    voter: Ints
    category: Ints
    language: Ints
    counts_s: Floats
    style: Floats

    def __len__(self) -> int:
        return len(self.first)

    @functools.cached_property
    def present(self) -> dict[str, list[str]]:
        """The categories and languages, by "category" and "language", that some vote has, sorted."""
        columns = {"category": (self.category, self.categories), "language": (self.language, self.languages)}
        return {
            name: sorted(names[i] for i in np.unique(column) if names[i])
            for name, (column, names) in columns.items()
        }

    def where(
        self, category: str = "", language: str = "", until_s: float | None = None
    ) -> NDArray[np.bool_]:
        """(n,) the votes of one category and language, "" being all, that counted by `until_s`."""
        chosen = np.ones(len(self), dtype=bool)
        for name, names, column in (
            (category, self.categories, self.category),
            (language, self.languages, self.language),
        ):
            if name:
                chosen &= column == (names.index(name) if name in names else -1)
        return chosen if until_s is None else chosen & (self.counts_s < until_s)

    def votes(self, chosen: NDArray[np.bool_], *, styled: bool = False) -> Votes:
        """The chosen votes, or of them those with style counts; the column `judge` holds voters' numbers.

        Raises:
          ValueError: there is none.
        """
        if styled:
            chosen = chosen & ~np.isnan(self.style).any(axis=1)
        if not chosen.any():
            raise ValueError("no votes that count yet")
        order = sorted(range(len(self.models)), key=self.models.__getitem__)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        first, second = place[self.first[chosen]], place[self.second[chosen]]
        columns: dict[str, NDArray[Any]] = {"judge": self.voter[chosen]}
        if styled:
            columns[style.COLUMN] = self.style[chosen]
        names = tuple(self.models[i] for i in order)
        votes = from_arrays(names, first, second, self.outcome[chosen], **columns)
        return votes.where(np.ones(len(votes), dtype=bool))


class CountedVotes:
    """Follows the votes of a database. One thread at a time."""

    def __init__(self, open_reader: Callable[[], ArenaReader]):
        self._open, self._last = open_reader, 0
        self._reader: ArenaReader | None = None
        self._models, self._voters, self._categories, self._languages = Names(), Names(), Names(), Names()
        self._ints = {n: array("q") for n in ("first", "second", "outcome", "voter", "category", "language")}
        self._counts_s, self._style = array("d"), array("d")
        self._excluded: frozenset[str] = frozenset()
        self._now: Snapshot | None = None

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def snapshot(self) -> tuple[Snapshot, bool]:
        """The votes that count now, and whether voters were excluded or let in again since the last call.

        The same object as before, if nothing changed.
        """
        excluded = self._read()
        now_s = time.time()
        counts_s = np.array(self._counts_s)
        counting = counts_s <= now_s
        if excluded:
            out = [n for n in map(self._voters.find, excluded) if n >= 0]
            counting &= ~np.isin(np.array(self._ints["voter"]), out)
        changed = excluded != self._excluded
        if self._now is None or changed or len(self._now) != int(counting.sum()):
            self._excluded = excluded
            column = {name: np.array(each)[counting] for name, each in self._ints.items()}
            self._now = Snapshot(
                models=self._models.all(),
                voters=self._voters.all(),
                categories=self._categories.all(),
                languages=self._languages.all(),
                first=column["first"],
                second=column["second"],
                outcome=column["outcome"],
                voter=column["voter"],
                category=column["category"],
                language=column["language"],
                counts_s=counts_s[counting],
                style=np.array(self._style).reshape(-1, len(style.FEATURES))[counting],
            )
        return self._now, changed

    def _read(self) -> frozenset[str]:
        """Reads the votes that are new; returns the excluded voters."""
        if self._reader is None:
            self._reader = self._open()
        while True:
            last, rows = self._reader.countable(self._last, BATCH)
            for row in rows:
                self._add(*row)
            if last == self._last:
                return frozenset(self._reader.excluded())
            self._last = last

    def _add(
        self,
        a: str,
        b: str,
        winner: str,
        voter: str,
        counts_s: float,
        category: Any,
        language: Any,
        counts: Any,
    ) -> None:
        values = (
            *(self._models.number(a), self._models.number(b), LABELS[winner], self._voters.number(voter)),
            *(self._categories.number(category or ""), self._languages.number(language or "")),
        )
        for column, value in zip(self._ints.values(), values):
            column.append(value)
        self._counts_s.append(counts_s)
        self._style.extend(_differences(counts))


def _differences(counts: str | None) -> list[float]:
    """Style differences of a stored vote; NaN where it has none, as votes of earlier versions."""
    try:
        return style.differences(json.loads(counts or "{}"))
    except (KeyError, TypeError, ValueError):
        return [float("nan")] * len(style.FEATURES)
