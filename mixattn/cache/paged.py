"""The KV cache of the serving engine: one page pool per owner, one page table per kind of owner.

Full owners share one table and sliding owners another, because a sliding row frees pages as they leave its
window. The host allocates pages and fills the tables (`serving.kvcache`); this module only reads them.

Axes: B rows, T tokens of this step, P logical pages of a row, N query heads, K key/value heads, H head size.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mixattn.cache import narrow
from mixattn.cache.protocol import select_token, step_positions
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import paged

type Kind = str  # the name of a `PageKind`


class PageKind(Protocol):
    """How the K/V of one kind of owner layers are laid out in pages.

    Hashable, because it is static under jit. `table_BP` is the page table of this kind's layers; `start_B`
    and `count_B` are those of `Paged`.
    """

    @property
    def name(self) -> Kind:
        """The key of this kind's page table."""
        ...

    def matches(self, layer: Layer) -> bool:
        """Whether this kind stores the K/V that `layer` reads."""
        ...

    def init(
        self, config: ModelConfig, layer: Layer, pages: int, page_size: int, dtype: DTypeLike
    ) -> paged.Pool:
        """An empty pool of one owner with `pages` pages, including the null page."""
        ...

    def write(
        self,
        pool: paged.Pool,
        table_BP: jax.Array,
        start_B: jax.Array,
        count_B: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
    ) -> paged.Pool:
        """The pool with this step's K/V written to it."""
        ...

    def attend(
        self,
        pool: paged.Pool,
        table_BP: jax.Array,
        start_B: jax.Array,
        count_B: jax.Array,
        layer: Layer,
        q_BTNH: jax.Array,
        *,
        scale: float | None,
        softcap: float | None,
    ) -> jax.Array:
        """out_BTNH of this step's queries over each row's K/V in the pool."""
        ...


@dataclass(frozen=True)
class PositionPages:
    """Pages in order of position: logical page j of a row holds positions [j p, (j + 1) p), p the page size.

    Attributes:
      slides: whether this is the kind of sliding layers or of full ones.
    """

    name: Kind
    slides: bool

    def matches(self, layer: Layer) -> bool:
        return layer.slides == self.slides

    def init(
        self, config: ModelConfig, layer: Layer, pages: int, page_size: int, dtype: DTypeLike
    ) -> paged.Pool:
        if layer.sinks:
            raise ValueError(
                f"layer {layer.index} keeps {layer.sinks} sinks beside its window of {layer.window}; pages of"
                " a sliding layer hold its window only, so use `generate`, or a config with sinks=0"
            )
        head = narrow.stored_head_dim(config.head_dim, dtype)
        return paged.init(pages, page_size, config.n_kv_heads, head, dtype, window=layer.window)

    def write(
        self,
        pool: paged.Pool,
        table_BP: jax.Array,
        start_B: jax.Array,
        count_B: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
    ) -> paged.Pool:
        (B, T), P = k_BTKH.shape[:2], table_BP.shape[1]
        pos_BT = step_positions(start_B, T)
        logical_BT = pos_BT // pool.page_size
        real_BT = (jnp.arange(T)[None] < count_B[:, None]) & (logical_BT < P)
        page_BT = jnp.take_along_axis(table_BP, jnp.minimum(logical_BT, P - 1), axis=1)
        page_BT = jnp.where(real_BT, page_BT, pool.pages)
        offset_BT = pos_BT % pool.page_size
        stored = (narrow.narrowed(x, pool.values.dtype) for x in (k_BTKH, v_BTKH))
        return paged.write(pool, *(x.reshape(B * T, *x.shape[2:]) for x in (*stored, page_BT, offset_BT)))

    def attend(
        self,
        pool: paged.Pool,
        table_BP: jax.Array,
        start_B: jax.Array,
        count_B: jax.Array,
        layer: Layer,
        q_BTNH: jax.Array,
        *,
        scale: float | None,
        softcap: float | None,
        unshared: bool = False,
    ) -> jax.Array:
        """See `PageKind`. `unshared`: see `paged.attend`."""
        pool = narrow.readable(pool, q_BTNH.dtype)
        q = q_BTNH.astype(pool.values.dtype)
        out_BTNH = paged.attend(
            q,
            pool,
            table_BP,
            start_B,
            count_B,
            window=layer.window,
            scale=scale,
            softcap=softcap,
            unshared=unshared,
        )
        return out_BTNH.astype(q_BTNH.dtype)


FULL, SLIDING = PositionPages("full", slides=False), PositionPages("sliding", slides=True)
PAGE_KINDS: tuple[PageKind, ...] = (FULL, SLIDING)


def kind_of(layer: Layer, kinds: Sequence[PageKind] = PAGE_KINDS) -> PageKind:
    """The first of `kinds` that matches `layer`.

    Raises:
      ValueError: no kind matches.
    """
    for kind in kinds:
        if kind.matches(layer):
            return kind
    raise ValueError(f"none of the page kinds {[kind.name for kind in kinds]} matches layer {layer.index}")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["pools", "tables", "start_B", "count_B"],
    meta_fields=["kinds"],
)
@dataclass(frozen=True)
class Paged:
    """Rows whose K/V are stored in pages.

    Attributes:
      pools: owner -> its pool.
      tables: kind -> table_BP, int32; 0 = no page, to which writes are dropped.
      start_B, count_B: int32; tokens held before this step, and this step's real tokens.
      kinds: static; the kinds of owners and how their K/V are laid out in pages.
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
        dtype: DTypeLike | None = None,
        kinds: Sequence[PageKind] = PAGE_KINDS,
    ) -> Self:
        """Empty pools and tables.

        Args:
          pages: pages per owner, including the null page.
          page_size: tokens per page.
          table_pages: logical pages per row.
        """
        pools, names = {}, set()
        for owner in config.owners:
            layer = config.layers[owner]
            kind = kind_of(layer, kinds)
            names.add(kind.name)
            sizes = pages[kind.name], page_size[kind.name]
            pools[owner] = kind.init(config, layer, *sizes, dtype or jnp.dtype(config.dtype))
        tables = {name: jnp.zeros((batch, table_pages[name]), jnp.int32) for name in sorted(names)}
        zero_B = jnp.zeros(batch, jnp.int32)
        return cls(pools, tables, zero_B, zero_B, tuple(kinds))

    def with_rows(self, tables: Mapping[Kind, jax.Array], start_B: jax.Array, count_B: jax.Array) -> Self:
        """The same pools with the tables and counts of one step's rows."""
        return dataclasses.replace(self, tables=dict(tables), start_B=start_B, count_B=count_B)

    def nbytes(self) -> dict[int, int]:
        """Bytes of each owner's pool, including the null page."""
        return {owner: pool.nbytes for owner, pool in self.pools.items()}

    def positions(self, T: int) -> jax.Array:
        return step_positions(self.start_B, T)

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        kind, rows = self._rows_of(layer)
        pool = kind.write(self.pools[layer.index], *rows, k_BTKH, v_BTKH)
        return dataclasses.replace(self, pools={**self.pools, layer.index: pool})

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        kind, rows = self._rows_of(layer)
        out_BTNH = kind.attend(self.pools[layer.owner], *rows, layer, q_BTNH, scale=scale, softcap=softcap)
        return out_BTNH, self

    def reads_every_query(self, layer: Layer) -> bool:
        return False

    def _rows_of(self, layer: Layer) -> tuple[PageKind, tuple[jax.Array, jax.Array, jax.Array]]:
        kind = kind_of(layer, self.kinds)
        return kind, (self.tables[kind.name], self.start_B, self.count_B)

    def at_last(self, T: int) -> Self:
        start_B = self.start_B + jnp.maximum(self.count_B - 1, 0)
        return dataclasses.replace(self, start_B=start_B, count_B=jnp.minimum(self.count_B, 1))

    def after_view(self, view: Self) -> Self:
        return self

    def select_last(self, x_BTD: jax.Array) -> jax.Array:
        return select_token(x_BTD, self.count_B - 1)

    def advance(self, T: int) -> Self:
        return dataclasses.replace(self, start_B=self.start_B + self.count_B)
