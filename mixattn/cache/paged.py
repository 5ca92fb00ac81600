"""The cache of the serving engine: one pool of pages an owner, one page table a kind of owner.

Full owners share a table, sliding owners another, because a sliding row gives pages back as they leave its
window. Tables are the host's business (`serving.kvcache.allocator`); this only reads them.

Axes: B rows, T tokens of this step, P logical pages of a row, N query heads, K key/value heads, H head size.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

from mixattn.cache.protocol import ahead, pick
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import paged

type Kind = str  # the name of a `PageKind`


class PageKind(Protocol):
    """How the K/V of some owner layers lie in pages. Hashable: compiled programs are specific to it.

    `table_BP` is the page table of this kind's layers; `start_B` and `count_B` as in `Paged`.
    """

    @property
    def name(self) -> Kind: ...

    def takes(self, layer: Layer) -> bool:
        """Whether this kind stores the K/V that `layer` reads."""
        ...

    def init(self, config: ModelConfig, layer: Layer, pages: int, page_size: int, dtype: Any) -> paged.Pool:
        """An empty pool of one owner; the null page is one of its `pages`."""
        ...

    def write(self, pool: paged.Pool, table_BP, start_B, count_B, k_BTKH, v_BTKH) -> paged.Pool:
        """Puts this step's tokens into the pool."""
        ...

    def attend(
        self, pool: paged.Pool, table_BP, start_B, count_B, layer: Layer, q_BTNH, *, scale, softcap
    ) -> jax.Array:
        """out_BTNH of this step's queries against what the pool holds of each row."""
        ...


@dataclass(frozen=True)
class PositionPages:
    """Logical page j of a row holds positions [j p, (j + 1) p), p the page size.

    Attributes:
      slides: whether it takes the sliding layers or those of full attention.
    """

    name: Kind
    slides: bool

    def takes(self, layer: Layer) -> bool:
        return layer.slides == self.slides

    def init(self, config: ModelConfig, layer: Layer, pages: int, page_size: int, dtype: Any) -> paged.Pool:
        return paged.init(pages, page_size, config.n_kv_heads, config.head_dim, dtype, window=layer.window)

    def write(self, pool: paged.Pool, table_BP, start_B, count_B, k_BTKH, v_BTKH) -> paged.Pool:
        (B, T), P = k_BTKH.shape[:2], table_BP.shape[1]
        pos_BT = ahead(start_B, T)
        logical_BT = pos_BT // pool.page_size
        real_BT = (jnp.arange(T)[None] < count_B[:, None]) & (logical_BT < P)
        page_BT = jnp.take_along_axis(table_BP, jnp.minimum(logical_BT, P - 1), axis=1)
        page_BT = jnp.where(real_BT, page_BT, pool.pages)
        offset_BT = pos_BT % pool.page_size
        return paged.write(
            pool, *(x.reshape(B * T, *x.shape[2:]) for x in (k_BTKH, v_BTKH, page_BT, offset_BT))
        )

    def attend(
        self, pool: paged.Pool, table_BP, start_B, count_B, layer: Layer, q_BTNH, *, scale, softcap
    ) -> jax.Array:
        options = {"window": layer.window, "scale": scale, "softcap": softcap}
        return paged.attend(q_BTNH, pool, table_BP, start_B, count_B, **options)


FULL, SLIDING = PositionPages("full", slides=False), PositionPages("sliding", slides=True)
PAGE_KINDS: tuple[PageKind, ...] = (FULL, SLIDING)


def kind_of(layer: Layer, kinds: Sequence[PageKind] = PAGE_KINDS) -> PageKind:
    """The first of `kinds` that takes `layer`.

    Raises:
      ValueError: none does.
    """
    for kind in kinds:
        if kind.takes(layer):
            return kind
    raise ValueError(f"none of the page kinds {[kind.name for kind in kinds]} takes layer {layer.index}")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["pools", "tables", "start_B", "count_B"],
    meta_fields=["kinds"],
)
@dataclass(frozen=True)
class Paged:
    """Rows whose K/V lie in pages.

    Attributes:
      pools: owner -> its pool.
      tables: kind -> table_BP, int32; 0 = no page, and what would be written there is dropped.
      start_B, count_B: int32: tokens held before this step, and this step's real tokens.
      kinds: static: which layers use which table, and how their K/V lie in pages.
    """

    pools: dict[int, paged.Pool]
    tables: dict[Kind, jax.Array]
    start_B: jax.Array
    count_B: jax.Array
    kinds: tuple[PageKind, ...] = PAGE_KINDS

    @classmethod
    def init(
        cls,
        config: ModelConfig,
        *,
        pages: Mapping[Kind, int],
        page_size: Mapping[Kind, int],
        batch: int,
        table_pages: Mapping[Kind, int],
        dtype: Any = None,
        kinds: Sequence[PageKind] = PAGE_KINDS,
    ) -> Self:
        """Empty pools of `pages` pages per owner, the null page among them; tables that point nowhere."""
        pools, names = {}, set()
        for owner in config.owners:
            layer = config.layers[owner]
            kind = kind_of(layer, kinds)
            names.add(kind.name)
            sizes = pages[kind.name], page_size[kind.name]
            pools[owner] = kind.init(config, layer, *sizes, dtype or jnp.dtype(config.dtype))
        tables = {name: jnp.zeros((batch, table_pages[name]), jnp.int32) for name in sorted(names)}
        nothing_B = jnp.zeros(batch, jnp.int32)
        return cls(pools, tables, nothing_B, nothing_B, tuple(kinds))

    def with_rows(self, tables: Mapping[Kind, jax.Array], start_B: jax.Array, count_B: jax.Array) -> Self:
        """The same pools, asked about other rows: what the engine does before each step."""
        return dataclasses.replace(self, tables=dict(tables), start_B=start_B, count_B=count_B)

    def nbytes(self) -> dict[int, int]:
        """Bytes of each owner's pool, the null page included."""
        return {owner: pool.nbytes for owner, pool in self.pools.items()}

    def positions(self, T: int) -> jax.Array:
        return ahead(self.start_B, T)

    def write(self, layer: Layer, k_BTKH, v_BTKH) -> Self:
        kind, rows = self._rows_of(layer)
        pool = kind.write(self.pools[layer.index], *rows, k_BTKH, v_BTKH)
        return dataclasses.replace(self, pools={**self.pools, layer.index: pool})

    def attend(self, layer: Layer, q_BTNH, *, scale=None, softcap=None) -> jax.Array:
        kind, rows = self._rows_of(layer)
        return kind.attend(self.pools[layer.owner], *rows, layer, q_BTNH, scale=scale, softcap=softcap)

    def _rows_of(self, layer: Layer) -> tuple[PageKind, tuple[jax.Array, jax.Array, jax.Array]]:
        kind = kind_of(layer, self.kinds)
        return kind, (self.tables[kind.name], self.start_B, self.count_B)

    def last(self, T: int) -> Self:
        start_B = self.start_B + jnp.maximum(self.count_B - 1, 0)
        return dataclasses.replace(self, start_B=start_B, count_B=jnp.minimum(self.count_B, 1))

    def pick_last(self, x_BTD) -> jax.Array:
        return pick(x_BTD, self.count_B - 1)

    def advance(self, T: int) -> Self:
        return dataclasses.replace(self, start_B=self.start_B + self.count_B)
