"""Heavy hitters: the attention that a key has received, summed or averaged over the queries that saw it.

Source: H2O (arXiv 2306.14048), algorithm 1; its appendix found the mean worse than the sum.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax

from mixattn.keep.scorers.protocol import ALL, Scorer, newest


@dataclass(frozen=True)
class HeavyHitters(Scorer):
    """The sum."""

    queries: ClassVar[int] = ALL

    def stepped(self, score_BKR: jax.Array, weights_BKR: jax.Array) -> jax.Array:
        return score_BKR + weights_BKR


@dataclass(frozen=True)
class MeanAttention(HeavyHitters):
    """The sum, divided by the number of queries that could see the key."""

    def worth(
        self, score_BKR: jax.Array, k_BKRH: jax.Array, position_BKR: jax.Array, layer: int
    ) -> jax.Array:
        return score_BKR / (newest(position_BKR) - position_BKR + 1).astype(score_BKR.dtype)
