"""Writes new keys and values into the pages of a pool, in place.

    pages[page[t], :, offset[t]] = row t                for every t whose page is among 1 .. pages - 1

A token at offset 0 opens its page: positions of the page that this call does not write become zero. This op
works on two arrays of pages, keys and values; `paged.write` is the entry point for pools.

Backends: `reference` (the definition), `xla` (a scatter; in place if the pool is donated), `tpu` (Pallas
Mosaic TPU; always in place, by aliased operands).

Axes: P pages, T tokens, K key/value heads, H head size, t positions of a page.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Backend, BackendChoice, dispatch
from pallas_kernels.typing import Layout, Shaped

__all__ = ["KvWriteCall", "explain", "write"]


class KvWriteCall(NamedTuple):
    """What a backend may know of a call before it runs: static properties only."""

    shape_PKtH: tuple[int, ...]
    tokens: int
    layout: Layout
    dtype: jnp.dtype


def write(
    keys: jax.Array,
    values_PKtH: jax.Array,
    k_TKH: jax.Array,
    v_TKH: jax.Array,
    page_T: jax.Array,
    offset_T: jax.Array,
    *,
    layout: Layout,
    backend: Backend | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Writes tokens into pages.

    Args:
      keys: [P, K, t, H], or [P, K, H, t] in `layout` "columns".
      page_T: int32; a token whose page is not in 1..P-1 is dropped.
      offset_T: int32, 0..t-1. Of two tokens at one place, either one remains.
      backend: a backend by name runs or raises; None takes the best of the platform that supports the call.
    Returns:
      Keys and values in the order they came.
    Raises:
      ValueError: shapes or dtypes disagree.
      NotImplementedError: the named backend does not support the call.
    """
    call = _check_call(values_PKtH, k_TKH, v_TKH, page_T, offset_T, layout)
    implementation, choice = dispatch(__name__, backend, call)
    # One sentinel for every dropped token: the page behind the last.
    P = values_PKtH.shape[0]
    page_T = jnp.where((page_T > 0) & (page_T < P), page_T, P).astype(jnp.int32)
    extra = {"interpret": True} if choice.interpret else {}
    pages: tuple[jax.Array, jax.Array] = implementation.write(
        keys, values_PKtH, k_TKH, v_TKH, page_T, offset_T, layout=layout, **extra
    )
    return pages


def explain(
    values_PKtH: Shaped,
    k_TKH: Shaped,
    v_TKH: Shaped,
    page_T: Shaped,
    offset_T: Shaped,
    *,
    layout: Layout,
    backend: Backend | None = None,
) -> BackendChoice:
    """The backend that `write` with these arguments runs, and why better ones do not. Runs nothing."""
    return dispatch(__name__, backend, _check_call(values_PKtH, k_TKH, v_TKH, page_T, offset_T, layout))[1]


def _check_call(
    values: Shaped, k: Shaped, v: Shaped, page: Shaped, offset: Shaped, layout: Layout
) -> KvWriteCall:
    T = page.shape[0]
    _, K, _, H = values.shape
    if not k.shape == v.shape == (T, K, H) or offset.shape != (T,):
        raise ValueError(
            f"{T} tokens for pages {values.shape} need k and v of shape ({T}, {K}, {H}) and {T} offsets; "
            f"they have {k.shape}, {v.shape}, {offset.shape}"
        )
    if not k.dtype == v.dtype == values.dtype:
        raise ValueError(f"k and v are {k.dtype} and {v.dtype}, the pages {values.dtype}")
    return KvWriteCall(values.shape, T, layout, values.dtype)
