"""Who meets whom: probabilities of pairs, by the models' weights or by active sampling, and honeypots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.catalog import ArenaModel
from mixattn.evals.arena.platform.counted import Snapshot
from mixattn.evals.arena.stats.counts import SCORE, count
from mixattn.evals.arena.stats.sampling import PairSampler

RULES = ("weights", "active")
REFRESH_VOTES = 50  # counted votes after which active sampling looks again


@dataclass(frozen=True)
class Drawn:
    """Models in the order of their sides. `probability`: of the unordered pair; None for a honeypot."""

    models: tuple[str, str]
    probability: float | None
    honeypot: str = ""  # or "self": one model against itself, or "broken": a known-broken one takes part


@dataclass
class PairDraw:
    """Draws pairs. Its table of probabilities changes with the models on, and with votes if `active`.

    Attributes:
      active: pairs whose interval would shrink most (`stats.sampling`), instead of products of weights.
      honeypots: share of battles that are honeypots.
      changed: called with every new table, so that it can be published.
    """

    models: Mapping[str, ArenaModel]
    active: bool
    honeypots: float
    rng: Generator
    changed: Callable[[list[tuple[str, str, float]]], None] = lambda table: None
    _table: list[tuple[str, str, float]] = field(default_factory=list)
    _key: tuple[Any, ...] = ()

    def table(self, on: set[str], counted: Snapshot | None) -> list[tuple[str, str, float]]:
        """(model, model, probability) of each unordered pair that may be drawn now.

        Args:
          counted: the votes that count, for active sampling.
        """
        names = [n for n, m in sorted(self.models.items()) if n in on and m.weight > 0 and not m.broken]
        seen = 0 if counted is None or not self.active else len(counted) // REFRESH_VOTES
        key = (tuple(names), seen)
        if key != self._key:
            self._key = key
            pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
            self._table = []
            if pairs:
                chances = self._active(pairs, counted) if self.active else self._weights(pairs)
                self._table = [(a, b, float(p)) for (a, b), p in zip(pairs, chances)]
            self.changed(self._table)
        return self._table

    def _weights(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        weight = np.array([self.models[a].weight * self.models[b].weight for a, b in pairs])
        return weight / weight.sum()

    def _active(self, pairs: Sequence[tuple[str, str]], counted: Snapshot | None) -> np.ndarray:
        n, wins = np.zeros(len(pairs)), np.zeros(len(pairs))
        if counted is not None and len(counted):
            votes = counted.votes(counted.where())
            counts = count(votes)
            met = zip(counts.low, counts.high, counts.votes.sum(axis=1), counts.votes @ SCORE)
            by_name = {(votes.models[i], votes.models[j]): (number, won) for i, j, number, won in met}
            for place, pair in enumerate(pairs):  # names are sorted in both
                n[place], wins[place] = by_name.get(pair, (0.0, 0.0))
        return PairSampler().probabilities(n, wins)

    def draw(self, table: Sequence[tuple[str, str, float]], on: set[str]) -> Drawn:
        """A pair, its sides by a fair coin.

        Raises:
          Refused: fewer than two models are switched on.
        """
        if not table:
            raise Refused("fewer than two models are switched on", 503)
        chances = np.array([pair[2] for pair in table])
        a, b, p = table[int(self.rng.choice(len(table), p=chances / chances.sum()))]
        if self.rng.random() < self.honeypots:
            broken = sorted(name for name, model in self.models.items() if model.broken and name in on)
            if broken and self.rng.random() < 0.5:
                other = broken[int(self.rng.integers(len(broken)))]
                return Drawn(self._sides(a, other), None, "broken")
            return Drawn((a, a), None, "self")
        return Drawn(self._sides(a, b), p)

    def _sides(self, a: str, b: str) -> tuple[str, str]:
        return (a, b) if self.rng.random() < 0.5 else (b, a)
