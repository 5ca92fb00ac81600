"""The KV cache of the serving engine: one page pool per owner, one page table per kind of owner.

Full owners share one table and sliding owners another, because a sliding row frees pages as they leave its
window. The host allocates pages and fills the tables (`serving.kvcache.allocator`); this module only reads
them.

Axes: B rows, T tokens of this step, P logical pages of a row, N query heads, K key/value heads, H head size.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mixattn.cache.protocol import select_token, step_positions
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import paged

type Kind = Literal["full", "sliding"]


def kind(layer: Layer) -> Kind:
    """Whether the layer attends to the full context or to a window."""
    return "full" if layer.window is None else "sliding"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["pools", "tables", "start_B", "count_B"], meta_fields=[]
)
@dataclass(frozen=True)
class Paged:
    """Rows whose K/V are stored in pages.

    Attributes:
      pools: owner -> its pool.
      tables: kind -> table_BP, int32: logical page j of a row holds positions [j p, (j + 1) p), where p is
        the page size of that kind's pools. 0 = no page; writes to it are dropped.
      start_B, count_B: int32: tokens held before this step, and this step's real tokens.
    """

    pools: dict[int, paged.Pool]
    tables: dict[Kind, jax.Array]
    start_B: jax.Array
    count_B: jax.Array

    @classmethod
    def init(
        cls,
        config: ModelConfig,
        *,
        pages: Mapping[Kind, int],
        page_size: Mapping[Kind, int],
        batch: int,
        table_pages: Mapping[Kind, int],
        dtype: DTypeLike | None = None,
    ) -> Self:
        """Empty pools and tables.

        Args:
          pages: pages per owner, including the null page.
          page_size: tokens per page.
          table_pages: logical pages per row.
        """
        pools, kinds = {}, set()
        for owner in config.owners:
            layer = config.layers[owner]
            kinds.add(kind(layer))
            shape = pages[kind(layer)], page_size[kind(layer)], config.n_kv_heads, config.head_dim
            pools[owner] = paged.init(*shape, dtype or jnp.dtype(config.dtype), window=layer.window)
        tables = {k: jnp.zeros((batch, table_pages[k]), jnp.int32) for k in sorted(kinds)}
        zero_B = jnp.zeros(batch, jnp.int32)
        return cls(pools, tables, zero_B, zero_B)

    def with_rows(self, tables: Mapping[Kind, jax.Array], start_B: jax.Array, count_B: jax.Array) -> Self:
        """The same pools with the tables and counts of one step's rows."""
        return dataclasses.replace(self, tables=dict(tables), start_B=start_B, count_B=count_B)

    def nbytes(self) -> dict[int, int]:
        """Bytes of each owner's pool, including the null page."""
        return {owner: pool.nbytes for owner, pool in self.pools.items()}

    def positions(self, T: int) -> jax.Array:
        return step_positions(self.start_B, T)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        pool, table_BP = self.pools[layer.index], self.tables[kind(layer)]
        (B, T), P = k_BTKH.shape[:2], table_BP.shape[1]
        pos_BT = self.positions(T)
        logical_BT = pos_BT // pool.page_size
        real_BT = (jnp.arange(T)[None] < self.count_B[:, None]) & (logical_BT < P)
        page_BT = jnp.take_along_axis(table_BP, jnp.minimum(logical_BT, P - 1), axis=1)
        page_BT = jnp.where(real_BT, page_BT, pool.pages)
        offset_BT = pos_BT % pool.page_size
        flat = (x.reshape(B * T, *x.shape[2:]) for x in (k_BTKH, v_BTKH, page_BT, offset_BT))
        return dataclasses.replace(self, pools={**self.pools, layer.index: paged.write(pool, *flat)})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> jax.Array:
        return paged.attend(
            q_BTNH,
            self.pools[layer.owner],
            self.tables[kind(layer)],
            self.start_B,
            self.count_B,
            window=layer.window,
            scale=scale,
            softcap=softcap,
        )

    def at_last(self, T: int) -> Self:
        start_B = self.start_B + jnp.maximum(self.count_B - 1, 0)
        return dataclasses.replace(self, start_B=start_B, count_B=jnp.minimum(self.count_B, 1))

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return select_token(x_BTD, self.count_B - 1)

    def advance(self, T: int) -> Self:
        return dataclasses.replace(self, start_B=self.start_B + self.count_B)
