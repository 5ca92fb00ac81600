"""Attention over a paged key/value pool: decode rows and prefill chunks in one call.

A pool holds pages of `page_size` positions. Row b of a batch is a request: its logical page j holds positions
[j·page_size, (j+1)·page_size) and is physical page `table_BP[b, j]`. The row has `count_B[b]` queries at
positions start_B[b] .. start_B[b] + count_B[b] - 1, whose keys and values are already written.

    attend = softmax over the positions p with masks.visible(query - p, window)

Page 0 is the null page: never allocated, always zero, the stand-in for pages that do not exist. Pages outside
the windows of all queries of a row are not read; their table entries may hold any value.

Axes: B rows, C queries of a row, P pages of a row's table, T tokens to write, N query heads, K key/value
heads, G = N // K, H head size. The layout of a pool's arrays is private to the backends.

Source: paged attention as in vLLM (arXiv 2309.06180), ragged rows as in JAX's ragged paged attention.
"""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels import kv_write
from pallas_kernels.dispatch import Backend, BackendChoice, dispatch, platform
from pallas_kernels.typing import Layout, Shaped

__all__ = [
    "Layout",
    "PagedCall",
    "Pool",
    "attend",
    "copy_pages",
    "explain",
    "init",
    "page_bytes",
    "read",
    "write",
]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=["layout"])
@dataclass(frozen=True)
class Pool:
    """The pages of one owner layer. Created by `init`, updated by `write` and `copy_pages`, read by `attend`.

    The layout of the arrays is private to this package. Values are always [pages, K, page_size, H]; keys are
    the same in layout "rows" and [pages, K, H, page_size] in layout "columns".
    """

    keys: jax.Array
    values: jax.Array
    layout: Layout

    @property
    def page_size(self) -> int:
        """Positions per page."""
        return self.values.shape[2]

    @property
    def pages(self) -> int:
        """Number of physical pages, the null page included."""
        return self.values.shape[0]

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads per position."""
        return self.values.shape[1]

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.values.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values together, the null page included."""
        return sum(x.size * x.dtype.itemsize for x in (self.keys, self.values))  # shapes have no `nbytes`


class PagedCall(NamedTuple):
    """What a backend may know of a call before it runs: static properties only."""

    shape_BCNH: tuple[int, ...]
    shape_BP: tuple[int, ...]
    pages: int
    page_size: int
    n_kv_heads: int
    layout: Layout
    dtype: jnp.dtype
    window: int | None
    softcap: float | None
    weights: bool


def init(
    pages: int,
    page_size: int,
    n_kv_heads: int,
    head_dim: int,
    dtype: DTypeLike,
    *,
    window: int | None = None,
    layout: Layout | None = None,
) -> Pool:
    """Creates a pool of `pages` physical pages, the null page included, all zero.

    `window` is the window of the layers that read the pool. It and `layout` choose the layout of the arrays
    and change no result. By default a CPU stores the keys of a pool without a window in columns, which lets
    decoding read every page in place (see `xla`); all other pools are in rows.

    Raises:
      ValueError: fewer than two pages, or pages without a position.
    """
    if pages < 2 or page_size < 1:
        raise ValueError(
            f"{pages} pages of {page_size}: a pool needs the null page and one more, of 1 or more"
        )
    if layout is None:
        layout = "columns" if window is None and platform() == "cpu" else "rows"
    rows = (pages, n_kv_heads, page_size, head_dim)
    columns = (pages, n_kv_heads, head_dim, page_size)
    return Pool(jnp.zeros(columns if layout == "columns" else rows, dtype), jnp.zeros(rows, dtype), layout)


def page_bytes(page_size: int, n_kv_heads: int, head_dim: int, dtype: DTypeLike) -> int:
    """Bytes of one page, keys and values together."""
    return 2 * page_size * n_kv_heads * head_dim * jnp.dtype(dtype).itemsize


def write(
    pool: Pool,
    k_TKH: jax.Array,
    v_TKH: jax.Array,
    page_T: jax.Array,
    offset_T: jax.Array,
    *,
    backend: Backend | None = None,
) -> Pool:
    """Writes token t at `offset_T[t]` of physical page `page_T[t]`.

    A token whose page is outside 1..pages-1 (padding uses `pages`) is dropped, so the null page stays zero.
    Of two tokens at one place, either one remains. A token at offset 0 opens its page: the rest of the page
    is zeroed, since a NaN of its former owner would reach a row that masks it, as 0 * NaN. The write is in
    place if the pool is donated. The backends and `explain` are those of `kv_write`.
    """
    tokens = k_TKH, v_TKH, page_T, offset_T
    pages = kv_write.write(pool.keys, pool.values, *tokens, layout=pool.layout, backend=backend)
    return Pool(*pages, pool.layout)


def copy_pages(pool: Pool, src_X: jax.Array, dst_X: jax.Array) -> Pool:
    """Copies page `src_X[i]` to page `dst_X[i]`. A destination outside 1..pages-1 is dropped."""
    dst_X = jnp.where((dst_X > 0) & (dst_X < pool.pages), dst_X, pool.pages)
    keys = pool.keys.at[dst_X].set(pool.keys[src_X], mode="drop")
    return Pool(keys, pool.values.at[dst_X].set(pool.values[src_X], mode="drop"), pool.layout)


def read(pool: Pool, page_X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values of whole pages in order of position: two arrays [*X, page_size, K, H]."""
    k, v = pool.keys[page_X], jnp.swapaxes(pool.values[page_X], -3, -2)
    return jnp.moveaxis(k, -1, -3) if pool.layout == "columns" else jnp.swapaxes(k, -3, -2), v


@overload
def attend(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: Literal[False] = False,
    return_weights: Literal[False] = False,
    unshared: bool = False,
    backend: Backend | None = None,
) -> jax.Array: ...


@overload
def attend(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    unshared: bool = False,
    backend: Backend | None = None,
) -> jax.Array | tuple[jax.Array, ...]: ...


def attend(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    unshared: bool = False,
    backend: Backend | None = None,
) -> jax.Array | tuple[jax.Array, ...]:
    """Attends over the pool; decode is C = 1.

    Args:
      q_BCNH: dtype of the pool. Queries at or beyond `count_B[b]` are padding.
      table_BP: physical pages, int32. Entries of pages that no query of the row sees are ignored.
      start_B, count_B: int32; a row with count 0 is empty. start + count is at most P · page_size.
      window: number of keys a query sees, itself included; None for all.
      scale: multiplies q·k; 1/sqrt(H) if None.
      softcap: c replaces a score x by c·tanh(x / c).
      return_lse: also return lse_BCN, float32; -inf for padding.
      return_weights: also return weights_BCNS, float32, the softmax weight of every position
        S = P · page_size; 0 where nothing is seen. H2O sums its scores from them.
      unshared: a promise that no page is in the tables of two rows, as with slabs; `xla` asks no further.
      backend: a backend by name runs or raises; None takes the best of the platform that supports the call.
    Returns:
      out_BCNH, or a tuple (out, lse), (out, weights) or (out, lse, weights). Padding gives 0.
    Raises:
      ValueError: shapes or options disagree.
      NotImplementedError: the named backend does not support the call.
    """
    call = _check_call(q_BCNH, pool, table_BP, start_B, count_B, window, softcap, return_weights)
    implementation, choice = dispatch(__name__, backend, call)
    out, lse, weights = implementation.attend(
        q_BCNH,
        pool,
        table_BP,
        start_B,
        count_B,
        window=window,
        scale=q_BCNH.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        return_weights=return_weights,
        **({"interpret": True} if choice.interpret else {}),
        **({"unshared": True} if unshared and choice.backend == "xla" else {}),
    )
    if return_lse or return_weights:
        return (out, *(lse,) * return_lse, *(weights,) * return_weights)
    return out


def explain(
    q_BCNH: Shaped,
    pool: Pool,
    table_BP: Shaped,
    start_B: Shaped,
    count_B: Shaped,
    *,
    backend: Backend | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_weights: bool = False,
) -> BackendChoice:
    """The backend that `attend` with these arguments runs, and why better ones do not. Runs nothing."""
    return dispatch(
        __name__,
        backend,
        _check_call(q_BCNH, pool, table_BP, start_B, count_B, window, softcap, return_weights),
    )[1]


def _check_call(
    q: Shaped,
    pool: Pool,
    table: Shaped,
    start: Shaped,
    count: Shaped,
    window: int | None,
    softcap: float | None,
    weights: bool,
) -> PagedCall:
    B, _, N, H = q.shape
    if pool.head_dim != H:
        raise ValueError(f"queries have head size {H}, the pool {pool.head_dim}")
    if N % pool.n_kv_heads:
        raise ValueError(f"{N} query heads do not split over {pool.n_kv_heads} key/value heads")
    if q.dtype != pool.keys.dtype:
        raise ValueError(f"queries are {q.dtype}, the pool is {pool.keys.dtype}")
    if (table.ndim, table.shape[0]) != (2, B) or start.shape != (B,) or count.shape != (B,):
        shapes = f"{table.shape}, {start.shape}, {count.shape}"
        raise ValueError(f"table, start and count of {B} rows have shapes {shapes}")
    if window is not None and window < 1:
        raise ValueError(f"window {window} is below 1, the query itself")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap {softcap} must be above 0")
    return PagedCall(
        q.shape,
        table.shape,
        pool.pages,
        pool.page_size,
        pool.n_kv_heads,
        pool.layout,
        q.dtype,
        window,
        softcap,
        weights,
    )
