"""Which pair should meet next? Pairs whose interval would shrink most (Chiang et al. 2024, eq. 9).

P(a) is proportional to sqrt(S_a / n_a) - sqrt(S_a / (n_a + 1)), S_a = q (1 - q) with q = (wins + 1) / (n_a
+ 2), mixed with a uniform share `explore`, so that every probability can be divided by. A pair below
`first_votes` votes goes first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from mixattn.evals.arena.stats.counts import Floats


@dataclass(frozen=True)
class PairSampler:
    """A sampling rule.

    Attributes:
      explore: share of uniform draws; every pair has at least explore / K.
      first_votes: votes that each pair gets before the rule applies.
      active: False draws uniformly.
    """

    explore: float = 0.05
    first_votes: int = 3
    active: bool = True

    def probabilities(self, votes: Floats, wins: Floats) -> Floats:
        """(K,) sums to 1. Log the drawn pair's: its inverse is the vote's weight.

        Args:
          votes, wins: (K,) of each pair; a tie is half a win.
        """
        uniform = np.full(len(votes), 1.0 / len(votes))
        if not self.active:
            return uniform
        new = votes < self.first_votes
        if new.any():
            gain = new.astype(np.float64)
        else:
            q = (wins + 1) / (votes + 2)
            s = np.sqrt(q * (1 - q))
            gain = s / np.sqrt(votes) - s / np.sqrt(votes + 1)
        return self.explore * uniform + (1 - self.explore) * gain / gain.sum()

    def draw(self, votes: Floats, wins: Floats, rng: Generator) -> tuple[int, float]:
        """A pair's index and the probability with which it was drawn."""
        p = self.probabilities(votes, wins)
        pair = int(rng.choice(len(p), p=p / p.sum()))
        return pair, float(p[pair])
