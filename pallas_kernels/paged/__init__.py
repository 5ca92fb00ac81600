"""Attention over a paged key/value pool: decode rows and prefill chunks in one call.

A pool holds pages of `page_size` positions. Row b of a batch is a request: logical page j of it holds
positions [j·page_size, (j+1)·page_size) and lies in physical page `table_BP[b, j]`. The row asks `count_B[b]`
queries at positions start_B[b] .. start_B[b] + count_B[b] - 1, whose own keys and values have been written.

    attend = softmax over the positions p with masks.visible(query - p, window)

Page 0 is the null page: never allocated, always zero, the target of whatever does not exist. Pages wholly
outside every query's window are neither read nor looked up, so their table entries may say anything.

Axes: B rows, C queries of a row, P pages of a row's table, T tokens to write, N query heads, K key/value
heads, G = N // K, H head size. The order of a pool's arrays is private to the bodies.

Source: paged attention as in vLLM (arXiv 2309.06180), ragged rows as in JAX's ragged paged attention.
"""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import kv_write
from pallas_kernels.dispatch import Backend, Choice, dispatch, platform

type Layout = Literal["rows", "columns"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=["layout"])
@dataclass(frozen=True)
class Pool:
    """One owner layer's pages. Made by `init`, changed by `write` and `copy_pages`, read by `attend`.

    The order of the arrays is private to this package. Values are [pages, K, page_size, H] always; keys are
    the same in layout "rows" and [pages, K, H, page_size] in layout "columns".
    """

    keys: jax.Array
    values: jax.Array
    layout: Layout

    @property
    def page_size(self) -> int:
        """Positions a page holds."""
        return self.values.shape[2]

    @property
    def pages(self) -> int:
        """Physical pages, the null page included."""
        return self.values.shape[0]

    @property
    def n_kv_heads(self) -> int:
        return self.values.shape[1]

    @property
    def head_dim(self) -> int:
        return self.values.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values together, the null page included."""
        return self.keys.nbytes + self.values.nbytes


class PagedCall(NamedTuple):
    """What a body may know of a call before it runs: static facts only."""

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
    dtype,
    *,
    window: int | None = None,
    layout: Layout | None = None,
) -> Pool:
    """An empty pool of `pages` physical pages, the null page among them, all zero.

    `window` is what the layers that read this pool will ask for. It and `layout` shape the pool, never its
    meaning. By default a CPU keeps the keys of a pool without a window in columns, where decoding can leave
    every page where it is (see `xla`); all else is in rows.
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


def page_bytes(page_size: int, n_kv_heads: int, head_dim: int, dtype) -> int:
    """Bytes of one page, keys and values together."""
    return 2 * page_size * n_kv_heads * head_dim * jnp.dtype(dtype).itemsize


def write(pool: Pool, k_TKH, v_TKH, page_T, offset_T, *, backend: Backend | None = None) -> Pool:
    """Puts token t at `offset_T[t]` of physical page `page_T[t]`.

    A page outside 1..pages-1 (padding rows say `pages`) drops its row, so the null page stays zero. Two
    tokens at one place leave either of them. A token at offset 0 opens its page: what a former holder left
    there is zeroed, or a NaN of it would reach a row that masks it, as 0 * NaN. Donate the pool and this
    happens in place. `kv_write` has the bodies, and its `explain`.
    """
    tokens = k_TKH, v_TKH, page_T, offset_T
    pages = kv_write.write(pool.keys, pool.values, *tokens, layout=pool.layout, backend=backend)
    return Pool(*pages, pool.layout)


def copy_pages(pool: Pool, src_X, dst_X) -> Pool:
    """Page `dst_X[i]` becomes a copy of page `src_X[i]`. A destination outside 1..pages-1 is dropped."""
    dst_X = jnp.where((dst_X > 0) & (dst_X < pool.pages), dst_X, pool.pages)
    keys = pool.keys.at[dst_X].set(pool.keys[src_X], mode="drop")
    return Pool(keys, pool.values.at[dst_X].set(pool.values[src_X], mode="drop"), pool.layout)


def read(pool: Pool, page_X) -> tuple[jax.Array, jax.Array]:
    """Keys and values of whole pages in the order of positions: two arrays [*X, page_size, K, H]."""
    k, v = pool.keys[page_X], jnp.swapaxes(pool.values[page_X], -3, -2)
    return jnp.moveaxis(k, -1, -3) if pool.layout == "columns" else jnp.swapaxes(k, -3, -2), v


def attend(
    q_BCNH,
    pool: Pool,
    table_BP,
    start_B,
    count_B,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    backend: Backend | None = None,
):
    """Attends over the pool; decode is C = 1.

    Args:
      q_BCNH: dtype of the pool. Queries at or beyond `count_B[b]` are padding.
      table_BP: physical pages, int32. Entries of pages that no query of the row sees are ignored.
      start_B, count_B: int32; a row with count 0 is empty. start + count may not pass P · page_size.
      window: keys a query sees, itself included; None for all.
      scale: multiplies q·k; 1/sqrt(H) if None.
      softcap: c replaces a score x by c·tanh(x / c).
      return_lse: also return lse_BCN, float32; -inf for padding.
      return_weights: also return weights_BCNS, float32, the softmax weight of every position
        S = P · page_size; 0 where nothing was seen. What H2O's scores are summed from.
      backend: a body by name runs or raises; None takes the platform's best that can.
    Returns:
      out_BCNH, or a tuple (out, lse), (out, weights) or (out, lse, weights). Padding gives 0.
    Raises:
      ValueError: shapes or options disagree.
      NotImplementedError: the named body cannot take the call.
    """
    ask = _call_of(q_BCNH, pool, table_BP, start_B, count_B, window, softcap, return_weights)
    body, choice = dispatch(__name__, backend, ask)
    out, lse, weights = body.attend(
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
    )
    extras = (lse,) * return_lse + (weights,) * return_weights
    return (out, *extras) if extras else out


def explain(
    q_BCNH, pool, table_BP, start_B, count_B, *, backend=None, window=None, softcap=None, return_weights=False
) -> Choice:
    """Which body `attend` with these arguments runs, and why better ones do not. Runs nothing."""
    return dispatch(
        __name__,
        backend,
        _call_of(q_BCNH, pool, table_BP, start_B, count_B, window, softcap, return_weights),
    )[1]


def _call_of(q, pool, table, start, count, window, softcap, weights) -> PagedCall:
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
