"""SnapKV: the attention of the prompt's last queries, averaged over neighbouring keys. Cuts the prompt once.

Source: arXiv 2404.14469, section 4.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from mixattn.keep.scorers.protocol import Scorer, newest


@dataclass(frozen=True)
class SnapKV(Scorer):
    """Attributes: window: queries observed. pool: keys over which votes are averaged, odd."""

    decodes: ClassVar[bool] = False
    window: int = 32
    pool: int = 5

    @property
    def reads(self) -> int:
        return self.window

    @property
    def protects(self) -> int:
        return self.window

    def settled(self, votes_BKS: jax.Array, position_BKS: jax.Array) -> jax.Array:
        """Keys of the window itself neither count nor need to: they stay."""
        past_BKS = (position_BKS >= 0) & (position_BKS <= newest(position_BKS) - self.window)
        votes_BKS = jnp.where(past_BKS, votes_BKS, 0)
        half = self.pool // 2
        return (
            lax.reduce_window(
                votes_BKS, 0.0, lax.add, (1, 1, self.pool), (1, 1, 1), ((0, 0), (0, 0), (half, half))
            )
            / self.pool
        )
