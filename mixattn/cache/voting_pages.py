"""Votes of a prompt: its chunks' queries tell how much attention each key before them receives.

Axes: B rows, T tokens, N query heads, K key/value heads, H head size, S positions of a page table.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Self

import jax

from mixattn.cache import narrow
from mixattn.cache.kept_pages import SlabRules
from mixattn.cache.paged import FULL, Paged
from mixattn.spec import Layer
from pallas_kernels import paged_votes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VotingPages:
    """One step of prompt chunks whose queries vote on the keys before them; a `Cache`.

    Attributes:
      pages: the pages of all owners.
      first_B: each row's first position whose query votes.
      rules: static.
      votes: owner -> what this chunk's queries gave each key so far, [B, K, S].
    """

    pages: Paged
    first_B: jax.Array
    rules: SlabRules = field(metadata={"static": True})
    votes: dict[int, jax.Array] = field(default_factory=dict)

    def positions(self, T: int) -> jax.Array:
        return self.pages.positions(T)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        return dataclasses.replace(self, pages=self.pages.write(layer, k_BTKH, v_BTKH))

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        if not self.rules.listens(layer):
            return self.pages.attend(layer, q_BTNH, scale=scale, softcap=softcap)[0], self
        pages = self.pages
        pool = narrow.readable(pages.pools[layer.owner], q_BTNH.dtype)
        q = q_BTNH.astype(pool.values.dtype)
        row = (pages.tables[FULL.name], pages.start_B, pages.count_B)
        out_BTNH, more_BKS = paged_votes.attend(
            q, pool, *row, first_B=self.first_B, scale=scale, softcap=softcap
        )
        before = self.votes.get(layer.owner)
        more_BKS = more_BKS if before is None else before + more_BKS
        heard = dataclasses.replace(self, votes={**self.votes, layer.owner: more_BKS})
        return out_BTNH.astype(q_BTNH.dtype), heard

    def reads_every_query(self, layer: Layer) -> bool:
        return self.rules.reads_every_query and self.rules.listens(layer)

    def at_last(self, T: int) -> Self:
        return dataclasses.replace(self, pages=self.pages.at_last(T))

    def after_view(self, view: Self) -> Self:
        return dataclasses.replace(self, votes=view.votes)

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return self.pages.select_last(x_BTD)

    def advance(self, T: int) -> Self:
        return dataclasses.replace(self, pages=self.pages.advance(T))
