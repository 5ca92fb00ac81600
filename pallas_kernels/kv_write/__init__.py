"""Putting new keys and values into the pages of a pool, in place.

    pages[page[t], :, offset[t]] = row t                for every t whose page is among 1 .. pages - 1

A token at offset 0 opens its page: positions of it that this call does not write become zero. `paged.write`
is the front door that knows pools; here are two arrays of pages, keys and values.

Bodies: `reference` (the definition), `xla` (a scatter; in place where the pool is donated), `tpu` (Pallas
Mosaic TPU; in place always, by aliased operands).

Axes: P pages, T tokens, K key/value heads, H head size, t positions of a page.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Backend, Choice, dispatch


class KvWriteCall(NamedTuple):
    """What a body may know of a call before it runs: static facts only."""

    shape_PKtH: tuple[int, ...]
    tokens: int
    layout: str
    dtype: jnp.dtype


def write(
    keys, values_PKtH, k_TKH, v_TKH, page_T, offset_T, *, layout: str, backend: Backend | None = None
) -> tuple[jax.Array, jax.Array]:
    """Keys and values with the tokens in them.

    Args:
      keys: [P, K, t, H], or [P, K, H, t] in `layout` "columns".
      page_T: int32; a token whose page is not in 1..P-1 is dropped.
      offset_T: int32, 0..t-1. Of two tokens at one place either is left.
      backend: a body by name runs or raises; None takes the platform's best that can.
    Raises:
      ValueError: shapes or dtypes disagree.
      NotImplementedError: the named body cannot take the call.
    """
    ask = _ask(values_PKtH, k_TKH, v_TKH, page_T, offset_T, layout)
    body, choice = dispatch(__name__, backend, ask)
    # One sentinel for all that is dropped: the page behind the last.
    P = values_PKtH.shape[0]
    page_T = jnp.where((page_T > 0) & (page_T < P), page_T, P).astype(jnp.int32)
    extra = {"interpret": True} if choice.interpret else {}
    return body.write(keys, values_PKtH, k_TKH, v_TKH, page_T, offset_T, layout=layout, **extra)


def explain(
    values_PKtH, k_TKH, v_TKH, page_T, offset_T, *, layout: str, backend: Backend | None = None
) -> Choice:
    """Which body `write` with these arguments runs, and why better ones do not. Runs nothing."""
    return dispatch(__name__, backend, _ask(values_PKtH, k_TKH, v_TKH, page_T, offset_T, layout))[1]


def _ask(values, k, v, page, offset, layout) -> KvWriteCall:
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
